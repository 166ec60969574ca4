"""The benchmark's parts that can be checked without measuring."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.benchmarks import __main__ as command
from tests.benchmarks import processes
from tests.benchmarks.callers.contract import Target
from tests.benchmarks.callers.grpc_floor import FloorCaller
from tests.benchmarks.callers.work import KINDS
from tests.benchmarks.cases import CASES, chosen
from tests.benchmarks.contenders import CONTENDERS
from tests.benchmarks.delay_proxy import listen
from tests.benchmarks.figures import Measured, Metric, Sample
from tests.benchmarks.grpc_floor import running_floor
from tests.benchmarks.pgbench import parse
from tests.benchmarks.rounds import Comparison, greedy
from tests.benchmarks.starting import BenchmarkFailed

FOLDER = Path(command.__file__).parent
COMPARISONS = [case for case in CASES if isinstance(case, Comparison)]


def test_pytest_finds_no_test_in_the_benchmark() -> None:
    assert not [path for path in FOLDER.rglob("*.py") if path.name.startswith(("test_", "conftest"))]


def test_cases_have_names_of_their_own() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) > 10


@pytest.mark.parametrize("case", COMPARISONS, ids=lambda case: case.name)
def test_a_case_names_contenders_and_work_that_exist(case: Comparison) -> None:
    keys = [entry.key for entry in case.entries]
    assert len(set(keys)) == len(keys)
    assert {entry.contender for entry in case.entries} <= set(CONTENDERS)
    assert case.job["work"] in KINDS
    assert [judge({}).said for judge in case.judges] == ["not measured"] * len(case.judges)


def test_cases_are_chosen_by_name_or_by_its_beginning() -> None:
    assert [case.name for case in chosen("point_read_1")] == ["point_read_1"]
    assert [case.name for case in chosen("tpcb, mixed")] == ["tpcb_1", "tpcb_16", "tpcb_1_network", "mixed"]
    assert chosen("") == list(CASES)
    with pytest.raises(ValueError, match="no case begins with 'nonsense'; there are point_read_1, "):
        chosen("mixed,nonsense")


def test_wrong_arguments_end_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--cases", "nonsense"]) == 2
    assert "no case begins with 'nonsense'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        command.main(["--rounds", "0"])
    assert ended.value.code == 2


class _Caller:
    """Counts; every tenth read is slow to answer."""

    def __init__(self) -> None:
        self.reads = self.sleeps = self.wrong = 0

    async def point_read(self, aid: int) -> tuple[int]:
        self.reads += 1
        await asyncio.sleep(0.02 if self.reads % 10 == 0 else 0.0001)
        return (self.wrong or aid,)

    async def sleep(self, seconds: float) -> None:
        self.sleeps += 1
        await asyncio.sleep(0)

    async def stream(self, rows: int) -> int:
        return rows - 1


async def test_slow_statements_are_called_but_not_timed() -> None:
    caller, target = _Caller(), Target("fake", 1, callers=4)
    answer = await KINDS["point_reads"](caller, target, {"seconds": 0.1, "slow_share": 0.5})  # type: ignore[arg-type]
    assert answer["operations"] == caller.reads
    assert caller.sleeps > 0
    assert answer["p50_ms"] < 19 <= answer["p99_ms"]
    assert answer["elapsed_s"] > 0.05


async def test_a_wrong_row_is_no_result() -> None:
    caller = _Caller()
    caller.wrong = -1
    with pytest.raises(RuntimeError, match=r"was asked for, \(-1,\) came"):
        await KINDS["point_reads"](caller, Target("fake", 1, callers=1), {"seconds": 1})  # type: ignore[arg-type]


async def test_a_result_with_missing_rows_is_no_result() -> None:
    with pytest.raises(RuntimeError, match="5 rows were asked for, 4 came"):
        await KINDS["stream"](_Caller(), Target("fake", 1, callers=1), {"rows": 5})  # type: ignore[arg-type]


def test_who_holds_too_many_connections_is_named() -> None:
    lines = [
        Measured(name, name.title(), tuple(Sample({Metric.CONNECTIONS: count}) for count in counts))
        for name, counts in {"modest": (20, 19), "greedy": (3, 21), "unknown": ()}.items()
    ]
    assert greedy(lines, 20) == ["unfair: Greedy held 21 server connections, 20 are allowed"]


def test_pgbench_is_read() -> None:
    printed = "number of transactions actually processed: 12000\nlatency average = 0.1 ms\ntps = 6000.5 (without ...)\n"
    answer = parse(printed)
    assert answer["operations"] == 12000
    assert answer["operations"] / answer["elapsed_s"] == pytest.approx(6000.5)
    with pytest.raises(BenchmarkFailed):
        parse("pgbench: error")


async def test_the_floor_gives_back_what_it_was_asked(tmp_path: Path) -> None:
    with running_floor(tmp_path / "floor.log") as floor:
        caller = FloorCaller(Target("floor", floor.port, callers=3))
        await caller.open()
        assert await asyncio.gather(*map(caller.point_read, (7, 8, 9))) == [(7,), (8,), (9,)]
        await caller.close()


def test_processor_time_of_ended_children_is_not_lost() -> None:
    own = [os.getpid()]
    before = processes.cpu_us(own)
    burn = "import time\nwhile time.process_time() < 0.15: pass"
    subprocess.run([sys.executable, "-c", burn], check=True)
    assert processes.cpu_us(own) - before >= 130_000


async def test_the_proxy_delays_each_way_and_keeps_the_order() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    delay_s = 0.02
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    proxy = await listen(server.sockets[0].getsockname()[1], delay_s)
    reader, writer = await asyncio.open_connection(*proxy.sockets[0].getsockname())
    sent = b"".join(number.to_bytes(4, "big") for number in range(50_000))
    start = time.monotonic()
    for at in range(0, len(sent), 10_000):
        writer.write(sent[at : at + 10_000])
        await asyncio.sleep(0)
    assert await reader.readexactly(len(sent)) == sent
    assert time.monotonic() - start >= 2 * delay_s
    writer.close()
    await writer.wait_closed()
    await asyncio.sleep(4 * delay_s)  # the end travels like everything else
    for one in (proxy, server):
        one.close()
        await one.wait_closed()
