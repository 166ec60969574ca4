"""The journal's files: what is written is read, whatever happens in between, and mistakes are explained."""

import asyncio
import gc
import hashlib
import json
import os
import socket
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.journal.state_directory import StateDirectory, open_state_directory
from router.model.identity import ClusterName, EndpointName, Lsn, Term
from router.model.journal import ClusterRecord, JournalFailed, MoveKind, MoveNote, MoveStage, Switch

MAIN = ClusterName("main")
RECORD = ClusterRecord(
    MAIN,
    7123456789012345678,
    Term(3),
    EndpointName("n1"),
    "ANY 1 (n2, n3)",
    (Switch(Term(3), EndpointName("n1"), Lsn(1 << 40)),),
    MoveNote(MoveKind.PROMOTION, MoveStage.PROMOTE, EndpointName("n2")),
)

names = st.text(min_size=1, max_size=12).map(EndpointName)
records = st.builds(
    ClusterRecord,
    st.just(MAIN),
    st.integers(0, 2**63),
    st.integers(0, 2**31).map(Term),
    st.none() | names,
    st.text(max_size=20),
    st.lists(st.builds(Switch, st.integers(1, 99).map(Term), names, st.integers(0, 2**63).map(Lsn)), max_size=3).map(
        tuple
    ),
    st.none() | st.builds(MoveNote, st.sampled_from(MoveKind), st.sampled_from(MoveStage), st.none() | names),
)


@given(records)
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, record: ClusterRecord):
    directory = StateDirectory(tmp_path_factory.mktemp("state"))
    asyncio.run(directory.write(record))
    assert directory.read(MAIN) == record


def test_nothing_is_known_before_the_first_page(tmp_path: Path):
    assert StateDirectory(tmp_path).read(MAIN) is None


def test_clusters_have_pages_of_their_own_whatever_their_names(tmp_path: Path):
    directory = StateDirectory(tmp_path)
    for name in ("a", "../a", "a/b"):
        asyncio.run(directory.write(ClusterRecord(ClusterName(name), term=Term(len(name)))))
    assert [directory.read(ClusterName(name)).term for name in ("a", "../a", "a/b")] == [1, 4, 3]  # type: ignore[union-attr]
    assert all(one.parent == tmp_path for one in tmp_path.rglob("*.json"))


def test_a_half_written_page_is_never_seen(tmp_path: Path):
    directory = StateDirectory(tmp_path)
    asyncio.run(directory.write(RECORD))
    (tmp_path / "main.new").write_text('{"format": 1, "clus')
    assert directory.read(MAIN) == RECORD
    asyncio.run(directory.write(RECORD))
    assert directory.read(MAIN) == RECORD


async def test_it_is_on_disk_before_it_is_said_and_in_this_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    did: list[str] = []
    flush, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: (did.append("flush"), flush(number))[1])
    monkeypatch.setattr(Path, "replace", lambda one, other: (did.append("rename"), replace(one, other))[1])
    await StateDirectory(tmp_path).write(RECORD)
    assert did == ["flush", "rename", "flush"]


async def test_a_write_that_hangs_never_overtakes_a_later_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    directory, stuck, flush = StateDirectory(tmp_path), threading.Event(), os.fsync
    hanging = threading.Event()

    def fsync(number: int) -> None:
        if not hanging.is_set():
            hanging.set()
            stuck.wait(5)
        flush(number)

    monkeypatch.setattr(os, "fsync", fsync)
    older = asyncio.create_task(directory.write(RECORD))
    await asyncio.to_thread(hanging.wait, 5)
    newer = asyncio.create_task(directory.write(ClusterRecord(MAIN, term=Term(9))))
    await asyncio.sleep(0.01)
    older.cancel()
    stuck.set()
    await newer
    assert directory.read(MAIN).term == 9  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2}', '{"format": 1, "cluster": "other"}', "null"])
def test_a_damaged_page_is_told_with_the_way_out(tmp_path: Path, text: str):
    (tmp_path / "main.json").write_text(text)
    with pytest.raises(JournalFailed, match=r"main\.json is damaged .* remove the file"):
        StateDirectory(tmp_path).read(MAIN)


def test_a_page_that_is_no_text_is_damaged(tmp_path: Path):
    (tmp_path / "main.json").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(JournalFailed, match=r"main\.json is damaged .* remove the file"):
        StateDirectory(tmp_path).read(MAIN)


def test_a_value_of_the_wrong_kind_is_damage(tmp_path: Path):
    asyncio.run(StateDirectory(tmp_path).write(RECORD))
    values = json.loads((tmp_path / "main.json").read_text())
    (tmp_path / "main.json").write_text(json.dumps({**values, "move": {"kind": "dance"}}))
    with pytest.raises(JournalFailed, match="damaged"):
        StateDirectory(tmp_path).read(MAIN)


def test_the_usual_place_is_beside_the_configuration_unless_systemd_names_one(tmp_path: Path):
    config = tmp_path / "pointsman.yaml"
    beside = open_state_directory("", config, {}, "fresh1", required=True)
    assert repr(beside) == f"<StateDirectory {tmp_path / 'state'}>"
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    by_systemd = {"STATE_DIRECTORY": f"{tmp_path / 'lib'}:/elsewhere"}
    given = open_state_directory("", config, by_systemd, "fresh1", required=True)
    assert repr(given) == f"<StateDirectory {tmp_path / 'lib'}>"
    named = open_state_directory("kept", config, {"STATE_DIRECTORY": "/nowhere"}, "fresh1", required=False)
    assert repr(named) == f"<StateDirectory {tmp_path / 'kept'}>"


def test_a_place_that_cannot_be_written_to_is_an_error_where_it_matters(tmp_path: Path):
    config = tmp_path / "pointsman.yaml"
    (tmp_path / "state").write_text("a file is in the way")
    assert open_state_directory("", config, {}, "fresh1", required=False) is None
    for configured, required in (("", True), ("state", False)):
        with pytest.raises(JournalFailed, match=r"cannot be written to: .*set server\.state_dir"):
            open_state_directory(configured, config, {}, "fresh1", required=required)


def opened(directory: Path, fresh: str = "fresh1", *, required: bool = True) -> StateDirectory:
    found = open_state_directory(str(directory), directory / "pointsman.yaml", {}, fresh, required=required)
    assert found is not None
    return found


def test_the_next_process_is_the_same_owner_also_on_another_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A pod's hostname is another one each time; its fences stay its router's."""
    before = opened(tmp_path / "mine")
    before.close()
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    assert opened(tmp_path / "mine", "fresh2").owner == before.owner == "fresh1"
    assert opened(tmp_path / "others", "fresh3").owner == "fresh3"


def test_a_directory_that_has_pages_but_no_owner_keeps_the_one_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It was made when the owner was a hash of host and path; a fence of then may still stand."""
    monkeypatch.setattr(socket, "gethostname", lambda: "db-router-1")
    asyncio.run(StateDirectory(tmp_path).write(RECORD))
    directory = opened(tmp_path)
    assert directory.owner == hashlib.sha256(f"db-router-1:{tmp_path.resolve()}".encode()).hexdigest()[:12]
    assert directory.read(MAIN) == RECORD
    directory.close()
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    assert opened(tmp_path).owner == directory.owner


def test_a_second_router_is_refused_until_the_first_has_ended(tmp_path: Path):
    first = opened(tmp_path)
    for required in (True, False):
        with pytest.raises(JournalFailed, match=r"is in use by another router; stop that one, or give each"):
            opened(tmp_path, required=required)
    first.close()
    second = opened(tmp_path)
    del second  # as a process that ends without a word
    gc.collect()
    opened(tmp_path)


def test_a_router_that_need_not_keep_anything_leaves_the_usual_place_to_the_first(tmp_path: Path):
    config = tmp_path / "pointsman.yaml"
    first = open_state_directory("", config, {}, "fresh1", required=False)
    assert first is not None
    assert open_state_directory("", config, {}, "fresh2", required=False) is None


async def test_the_directory_stays_taken_while_a_write_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Else it would overwrite what the next router has written."""
    first, hangs, on = opened(tmp_path), threading.Event(), threading.Event()
    flush = os.fsync

    def fsync(number: int) -> None:
        hangs.set()
        on.wait(5)
        flush(number)

    monkeypatch.setattr(os, "fsync", fsync)
    writing = asyncio.create_task(first.write(RECORD))
    await asyncio.to_thread(hangs.wait, 5)
    first.close()
    with pytest.raises(JournalFailed, match="in use"):
        opened(tmp_path)
    on.set()
    await writing
    first.close()
    opened(tmp_path)


@pytest.mark.parametrize("text", ["", "a b", "../x"])
def test_a_damaged_owner_is_told_with_the_way_out(tmp_path: Path, text: str):
    (tmp_path / "owner").write_text(text)
    with pytest.raises(JournalFailed, match=r"owner is damaged: remove the file"):
        opened(tmp_path)
