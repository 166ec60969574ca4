"""status, switchover, drain and the other commands that talk to AdminService."""

from __future__ import annotations

import io
import json
import socket
from pathlib import Path

import pytest
from pointsman.v1 import admin_service_pb2 as pb
from pointsman.v1 import types_pb2
from rich.console import Console

from router.console import status_view
from router.console.admin_client import AdminClient
from router.console.targets import Target
from tests.cli.conftest import TOKEN, Ask, Command, FakeAdmin


def test_status_shows_roles_health_lag_tenants_and_pools(ask: Ask):
    ended = ask("status")
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert lines[0] == "pointsman 9.9 · up 67 min · topology 7 · /etc/p.yaml"
    assert "cluster main  steady for 12.0 s  primary pg1  term 3  generation 2  follow  4 held" in ended.out
    row = {line.split()[0]: line for line in lines if line.strip()}
    assert row["pg1"].split()[1:5] == ["one:5432", "a", "primary", "up"]
    assert "9/80 +3" in row["pg1"]
    assert "down (probe_timeout) draining" in row["pg2"]
    assert "12.5 s 400 KiB" in row["pg2"]
    assert "unknown" in row["pg3"]
    assert str(2**40) in row["acme"] or "3/8" in row["acme"]
    assert {"beta", "gamma"} <= set(row), "all pages are asked for"


def test_status_as_json_is_the_whole_state_in_plain_values(ask: Ask):
    status = json.loads(ask("status", "--json").out)
    assert list(status) == ["server", "clusters", "tenants", "pools", "workers"]
    (cluster,) = status["clusters"]
    assert (cluster["phase"], cluster["primary"], cluster["term"]) == ("steady", "pg1", 3)
    assert [(end["name"], end["role"], end["health"]) for end in cluster["endpoints"]] == [
        ("pg1", "primary", "up"),
        ("pg2", "replica", "down"),
        ("pg3", "replica", "unknown"),
    ]
    assert [(tenant["name"], tenant["served"]) for tenant in status["tenants"]] == [
        ("acme", 2**40),
        ("beta", 0),
        ("gamma", 0),
    ]


def test_watch_looks_again_and_again(admin: FakeAdmin, monkeypatch: pytest.MonkeyPatch):
    looks = []
    monkeypatch.setattr(status_view.time, "sleep", lambda seconds: looks.append(seconds))
    with AdminClient(Target(admin.address, TOKEN)) as client:

        def read() -> status_view.Status:
            if len(looks) == 3:
                raise KeyboardInterrupt
            return status_view.look(client)

        with pytest.raises(KeyboardInterrupt):
            status_view.watch(read, Console(quiet=True), 0.5)
    assert looks == [0.5, 0.5, 0.5]


def test_the_doctor_tells_what_is_wrong_and_the_fix(ask: Ask, admin: FakeAdmin):
    ended = ask("doctor")
    assert (ended.code, ended.out) == (0, "nothing found\n")
    assert "pointsman doctor" not in ask("status").out
    fix = "ALTER SYSTEM SET wal_retrieve_retry_interval = '100ms'; SELECT pg_reload_conf();"
    admin.findings = [
        pb.Finding(endpoint="pg2", check="retry_interval", severity="warning", message="it is 5 s", fix=fix)
    ]
    ended = ask("doctor")
    assert ended.code == 1
    assert ended.out.splitlines() == ["warning main/pg2  it is 5 s", f"        {fix}"]
    assert json.loads(ask("doctor", "--json").out) == [
        {
            "cluster": "main",
            "endpoint": "pg2",
            "check": "retry_interval",
            "severity": "warning",
            "message": "it is 5 s",
            "fix": fix,
        }
    ]
    assert "1 finding: pointsman doctor" in ask("status").out


def test_a_switchover_tells_each_step_and_its_price(ask: Ask, admin: FakeAdmin):
    admin.steps = [
        pb.SwitchoverResponse(step="hold_writes", elapsed_s=0.01),
        pb.SwitchoverResponse(step="promote", detail="pg2", elapsed_s=0.2),
        pb.SwitchoverResponse(step="done", done=True, primary="pg2", elapsed_s=0.7, pause_s=0.432),
    ]
    ended = ask("switchover", "main", "--to", "pg2", "--timeout", "3")
    assert ended.code == 0
    assert "hold_writes" in ended.out
    assert "0.200 s  promote  pg2" in ended.out
    assert "pg2 is the primary of main; writes waited 432 ms, 0.7 s in all" in ended.out
    assert admin.seen[-1] == pb.SwitchoverRequest(cluster="main", to="pg2", timeout_ms=3000)


def test_a_switchover_without_an_end_is_a_problem(ask: Ask, admin: FakeAdmin):
    admin.steps = [pb.SwitchoverResponse(step="hold_writes")]
    ended = ask("switchover", "main")
    assert ended.code == 1
    assert "ended without saying how" in ended.err


def test_drain_resume_and_weight(ask: Ask, admin: FakeAdmin):
    assert ask("drain", "pg2").out == "pg2 takes no new work; 2 requests still run there\n"
    of_the_primary = ask("drain", "pg1").out.splitlines()
    assert of_the_primary[0] == "pg1 takes no new work; 2 requests still run there"
    assert "pg1 is the primary: requests wait, and fail in the end, until: pointsman resume pg1" in of_the_primary
    assert ask("resume", "pg1").out == "pg1 takes work again\n"
    assert ask("weight", "pg1", "0").out == "pg1: weight 100 → 0, until the next reload or restart\n"
    assert admin.seen[-1] == pb.SetEndpointWeightRequest(endpoint="pg1", weight=0)


def test_orders_as_json_are_what_the_router_answered(ask: Ask, admin: FakeAdmin):
    admin.behind = ["worker 2 is late"]
    late = {"endpoint": "pg1", "behind": admin.behind}
    assert json.loads(ask("drain", "pg1", "--json").out) == {**late, "in_flight": 2}
    assert json.loads(ask("resume", "pg1", "--json").out) == {"endpoint": "pg1", "behind": []}
    assert json.loads(ask("weight", "pg1", "7", "--json").out) == {**late, "previous": 100, "weight": 7}
    admin.steps = [
        pb.SwitchoverResponse(step="promote", detail="pg2", elapsed_s=0.5),
        pb.SwitchoverResponse(step="done", done=True, primary="pg2", elapsed_s=0.75, pause_s=0.25),
    ]
    first, last = map(json.loads, ask("switchover", "main", "--json").out.splitlines())
    assert (first["cluster"], first["step"], first["done"]) == ("main", "promote", False)
    assert (last["done"], last["primary"], last["pause_s"]) == (True, "pg2", 0.25)
    admin.reload = pb.ReloadConfigResponse(applied=False, problems=["x.yaml:1: a"])
    for words in (("reload",), ("config", "reload")):
        ended = ask(*words, "--json")
        assert (ended.code, json.loads(ended.out)["problems"]) == (1, ["x.yaml:1: a"])


def test_an_unknown_endpoint_is_a_problem_in_the_routers_words(ask: Ask):
    ended = ask("drain", "pg9")
    assert (ended.code, ended.err) == (1, "pointsman: there is no endpoint pg9\n")


def test_reload_tells_changes_or_every_problem(ask: Ask, admin: FakeAdmin):
    assert ask("reload").out == "applied: nothing had changed\n"
    admin.reload = pb.ReloadConfigResponse(applied=True, changes=["tenants.beta: added"])
    assert ask("reload").out == "tenants.beta: added\napplied\n"
    admin.reload = pb.ReloadConfigResponse(applied=False, problems=["x.yaml:1: a", "x.yaml:2: b"])
    ended = ask("reload")
    assert ended.code == 1
    assert ended.err.startswith("pointsman: x.yaml:1: a\nx.yaml:2: b\nnothing was changed")


def test_config_reload_is_reload(ask: Ask):
    assert ask("config", "reload").out == "applied: nothing had changed\n"


def test_config_diff_asks_the_router(ask: Ask, tmp_path: Path):
    line = "tenants.acme: removed (takes nothing new; what runs ends, then its connections close)\n"
    assert ask("config", "diff").out == line
    told = json.loads(ask("config", "diff", "--json").out)
    assert told == [{"place": "tenants.acme", "change": "removed", "effect": "drains"}]
    file = tmp_path / "new.yaml"
    file.write_text("clusters: {}")
    ended = ask("config", "diff", str(file))
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("pointsman: new.yaml:1: x\nnew.yaml:2: y\n")
    absent = ask("config", "diff", str(tmp_path / "absent.yaml"))
    assert (absent.code, "no such file" in absent.err) == (1, True)


def test_waiters(ask: Ask):
    heading, row = ask("waiters").out.splitlines()
    assert heading.split() == ["tenant", "request", "method", "phase", "for", "endpoint", "waits", "for"]
    assert row.split() == ["acme", "r1", "query", "hold", "1.5", "s", "a", "primary"]
    assert ask("waiters", "--tenant", "beta").out == "nothing waits\n"
    (waiter,) = json.loads(ask("waiters", "--json").out)
    assert (waiter["request_id"], waiter["waited_s"]) == ("r1", 1.5)


def test_a_wrong_token_says_which_one_is_meant(command: Command, admin: FakeAdmin):
    ended = command("status", "--address", admin.address, "--token", "nonsense")
    assert ended.code == 1
    assert ended.err == (
        "pointsman: the token is not one of the admin tokens\n"
        "check --token (POINTSMAN_ADMIN_TOKEN): it must be one of admin.tokens\n"
    )


def test_environment_variables_are_honoured(command: Command, admin: FakeAdmin, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("POINTSMAN_ADMIN_ADDRESS", admin.address)
    monkeypatch.setenv("POINTSMAN_ADMIN_TOKEN", TOKEN)
    assert command("drain", "pg2").code == 0


def test_a_development_router_is_found_by_its_directory(command: Command, admin: FakeAdmin, tmp_path: Path):
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "admin.token").write_text(f"{TOKEN}\n")
    (tmp_path / "dev.json").write_text(json.dumps({"admin": admin.address, "router": "x:1", "tenants": []}))
    assert command("drain", "pg2", "--dev", str(tmp_path)).code == 0
    ended = command("drain", "pg2", "--dev", str(tmp_path / "absent"))
    assert ended.code == 2
    assert "no running development router" in ended.err


def test_no_token_is_a_usage_error(command: Command):
    ended = command("status")
    assert ended.code == 2
    assert ended.err.startswith("pointsman: no admin token given\nuse --token or POINTSMAN_ADMIN_TOKEN")


@pytest.mark.parametrize("verb", [["status"], ["doctor"], ["waiters"], ["reload"], ["drain", "x"], ["switchover", "x"]])
def test_an_unreachable_router_is_exit_code_three(command: Command, verb: list[str]):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, but nothing listens
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        ended = command(*verb, "--address", address, "--token", TOKEN)
    assert ended.code == 3
    assert ended.err.startswith(f"pointsman: no router answers at {address}\n")
    assert "Traceback" not in ended.err


def test_a_callers_port_is_told_apart(command: Command):
    from concurrent import futures

    import grpc

    with futures.ThreadPoolExecutor(1) as threads:
        server = grpc.server(threads)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        ended = command("drain", "pg1", "--address", f"127.0.0.1:{port}", "--token", TOKEN)
        server.stop(None).wait()
    assert ended.code == 1
    assert "does not serve AdminService" in ended.err


@pytest.mark.parametrize("address", ["nonsense", "host:", ":1", "host:x"])
def test_a_malformed_address_is_a_usage_error(command: Command, address: str):
    ended = command("status", "--address", address, "--token", TOKEN)
    assert ended.code == 2
    assert "is no address" in ended.err


def test_health(command: Command):
    from concurrent import futures

    import grpc
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc

    with futures.ThreadPoolExecutor(1) as threads:
        server = grpc.server(threads)
        servicer = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        serving = command("health", "--address", address)
        servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        draining = command("health", "--address", address)
        server.stop(None).wait()
    gone = command("health", "--address", address)
    assert [serving.code, draining.code, gone.code] == [0, 1, 3]


def test_durations_are_said_as_people_say_them():
    assert [status_view.duration(s) for s in (0.04, 59, 90, 7100, 7200, 200_000)] == [
        "0.0 s", "59.0 s", "2 min", "118 min", "2 h", "2 d",
    ]  # fmt: skip


LIBPQ = (
    'refused: connection failed: connection to server at "10.20.30.41", port 5432 failed: Connection refused\n'
    "\tIs the server running on that host and accepting TCP/IP connections?\n" + "x" * 300
)


def rendered(width: int, *, failing: bool) -> str:
    """The status of a cluster of three as a terminal of that width shows it, all well or in a failover."""
    health = pb.ENDPOINT_HEALTH_DOWN if failing else pb.ENDPOINT_HEALTH_UP
    first = pb.EndpointState(
        name="pg1",
        cluster="main",
        host="pg1.db.example.net",
        port=5432,
        zone="eu-1a",
        weight=100,
        connections=40,
        connections_cap=80,
        connections_wanted=12 if failing else 0,
        role=types_pb2.ENDPOINT_ROLE_PRIMARY,
        health=health,
        health_reason=LIBPQ if failing else "",
        in_flight=17,
    )
    others = [
        pb.EndpointState(
            name=name,
            cluster="main",
            host=f"{name}.db.example.net",
            port=5432,
            zone="eu-1b",
            lag_s=12.5,
            weight=100,
            role=types_pb2.ENDPOINT_ROLE_REPLICA,
            health=pb.ENDPOINT_HEALTH_UP,
            lag_bytes=4 << 20,
            probe_ms=0.6,
        )
        for name in ("pg2", "pg3")
    ]
    cluster = pb.ClusterState(
        name="main", phase=pb.CLUSTER_PHASE_STEADY, primary="" if failing else "pg1", term=3, generation=2,
        mode="promote", held=4 if failing else 0, phase_age_s=12, endpoints=[first, *others],
    )  # fmt: skip
    tenant = pb.TenantState(name="a-tenant-name", cluster="main", database="a_database", served=123456789)
    pool = pb.PoolState(tenant="a-tenant-name", endpoint="pg1", access="read_write", size=3, max_size=8, lanes=2)
    server = pb.GetServerInfoResponse(version="0.1.0", config_path="/etc/pointsman/pointsman.yaml")
    out = io.StringIO()
    status = status_view.Status(server, [cluster], [tenant], [pool])
    Console(file=out, width=width, highlight=False).print(status_view.as_tables(status))
    return out.getvalue()


def test_status_tells_of_certificate_files_that_are_of_no_use():
    troubles = [pb.CertificateTrouble(port="callers", problem="file /etc/ca.pem holds no certificates", for_s=185)]
    out = io.StringIO()
    status = status_view.Status(pb.GetServerInfoResponse(certificate_troubles=troubles), [], [], [])
    Console(file=out, width=200, highlight=False).print(status_view.as_tables(status))
    assert (
        "the callers' port goes on with the certificates from before, for 3 min: file /etc/ca.pem holds no certificates"
        in out.getvalue()
    )
    (told,) = json.loads(status_view.as_json(status))["server"]["certificate_troubles"]
    assert told["problem"] == "file /etc/ca.pem holds no certificates"


@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize("width", [80, 110])
def test_status_can_be_read_in_a_narrow_terminal(width: int, failing: bool):
    text = rendered(width, failing=failing)
    assert all(len(line) <= width for line in text.splitlines())
    assert "…" not in text
    rows = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    for name, role in (("pg1", "primary"), ("pg2", "replica"), ("pg3", "replica")):
        assert f"{name}.db.example.net:5432" in rows[name]
        assert f" {role} " in rows[name]
    assert "12.5 s 4096 KiB" in rows["pg2"]
    assert "3/8" in rows["a-tenant-name"] or "123456789" in rows["a-tenant-name"]
    assert "123456789" in text
    assert "read write" in text
    columns = next(line for line in text.splitlines() if line.startswith("endpoint")).split()
    assert ("weight" in columns) == (width == 110), "what one needs least goes first"


def test_the_words_of_an_error_stand_below_the_table():
    text = rendered(110, failing=True)
    rows = [line for line in text.splitlines() if line.startswith("pg1 ")]
    assert "down (refused)" in rows[0]
    below = text.partition("pg3.db.example.net")[2]
    assert "pg1: connection failed: connection to server" in below
    assert "x" * 300 in "".join(line.strip() for line in below.splitlines())


@pytest.mark.usefixtures("two_looks")
def test_status_again_and_again_as_json_is_one_line_a_look(ask: Ask):
    ended = ask("status", "--watch", "--json", "--interval", "0.5")
    assert ended.code == 130
    assert [json.loads(line)["server"]["version"] for line in ended.out.splitlines()] == ["9.9", "9.9"]
