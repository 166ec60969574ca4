"""The log: its form, its levels, and what never appears in it."""

import io
import json
import logging

import pytest
import structlog

from router.model import events as ev
from router.model.events import Health, Outcome, Phase
from router.model.port_policies import AuditPolicy
from router.model.reasons import CloseReason, HealthReason, PhaseReason
from router.model.request import Access
from router.telemetry import log_setup
from router.telemetry.audit_log import AuditLog
from router.telemetry.event_sink import TelemetrySink, threshold_of
from tests.telemetry.test_metrics import ALL_EVENTS, finished


@pytest.fixture(autouse=True)
def _root_logger_as_before():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def log(level: str = "info", form: str = "json") -> io.StringIO:
    stream = io.StringIO()
    log_setup.set_up(level, form, stream)
    return stream


def lines(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


class Written:
    def __init__(self, level: str):
        self.lines: list[tuple[int, str, dict]] = []
        self.sink = TelemetrySink(level=level, write=lambda at, name, **fields: self.lines.append((at, name, fields)))


def test_json_by_default_where_there_is_no_terminal():
    stream = log(form="auto")
    structlog.get_logger("router").info("router ready", address="127.0.0.1:7432")
    (line,) = lines(stream)
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "router ready", "level": "info", "logger": "router", "address": "127.0.0.1:7432"}


def test_console_form_is_for_people():
    stream = log(form="console")
    structlog.get_logger("router").warning("cluster phase changed", after="holding")
    assert "cluster phase changed" in stream.getvalue()
    assert "after" in stream.getvalue()
    with pytest.raises(json.JSONDecodeError):
        lines(stream)


def test_the_standard_librarys_loggers_come_through_the_same_form():
    stream = log()
    logging.getLogger("grpc").warning("something %s", "odd")
    logging.getLogger("psycopg.pool").warning("error connecting in 'pool-1'")
    logging.getLogger("asyncio").debug("selector")
    assert [(line["logger"], line["event"]) for line in lines(stream)] == [("grpc", "something odd")]


def test_setting_up_again_writes_each_line_once():
    log()
    stream = log("error")
    structlog.get_logger("router").error("x")
    structlog.get_logger("router").warning("y")
    assert len(lines(stream)) == 1


@pytest.mark.parametrize(
    "name", ["sql", "params", "password", "admin_token", "Authorization", "query", "dsn", "client_secret"]
)
def test_fields_that_may_hold_secrets_or_sql_are_starred(name: str):
    stream = log()
    structlog.get_logger("router").info("x", **{name: "hunter2"}, nested={name: "hunter2"})
    assert "hunter2" not in stream.getvalue()
    assert lines(stream)[0][name] == "***"


@pytest.mark.parametrize(
    "text",
    [
        "could not connect: password=hunter2 host=x",
        "postgresql://app:hunter2@host/db",
        "password = 'hunter2 and more'",
        "authorization: hunter2",
    ],
)
def test_secrets_inside_texts_are_starred(text: str):
    stream = log()
    structlog.get_logger("router").info("x", error=text, errors=[text])
    logging.getLogger("other").warning(text)
    assert "hunter2" not in stream.getvalue()


def test_an_exception_is_told_by_class_and_frames_not_by_its_text():
    stream = log()
    try:
        raise ValueError("Key (email)=(jo@example.org) already exists")
    except ValueError:
        structlog.get_logger("router").exception("x")
        logging.getLogger("other").exception("y")
    assert "jo@example.org" not in stream.getvalue()
    for line in lines(stream):
        assert line["error"] == "builtins.ValueError"
        assert line["trace"][0].startswith("test_logging.py:")


def test_requests_are_one_event_at_debug_and_none_above():
    quiet, chatty = Written("info"), Written("debug")
    event = finished("acme", Outcome.SERVED, executed_s=0.0012345, rows=2)
    quiet.sink.emit(event)
    chatty.sink.emit(event)
    assert quiet.lines == []
    assert chatty.lines == [
        (
            logging.DEBUG,
            "request finished",
            {
                "tenant": "acme",
                "method": "query",
                "outcome": "served",
                "attempts": 1,
                "rows": 2,
                "executed_ms": 1.234,
                "total_ms": 1.0,
            },
        )
    ]


def test_an_internal_error_is_written_also_when_requests_are_not():
    quiet = Written("error")
    quiet.sink.emit(finished("acme", Outcome.FAILED, "internal"))
    quiet.sink.emit(finished("acme", Outcome.FAILED, "bad_sql"))
    assert [(level, fields["reason"]) for level, _, fields in quiet.lines] == [(logging.ERROR, "internal")]


@pytest.mark.parametrize(
    ("event", "level"),
    [
        (ev.PhaseChanged("m", Phase.STEADY, Phase.STUCK, PhaseReason.NO_CANDIDATE, None, 1, 1), logging.ERROR),
        (ev.PhaseChanged("m", Phase.STEADY, Phase.HOLDING, PhaseReason.NO_PRIMARY, None, 1, 1), logging.WARNING),
        (ev.PhaseChanged("m", Phase.DRAINING, Phase.STEADY, PhaseReason.DRAINED, "a", 1, 1), logging.INFO),
        (ev.HealthChanged("m", "a", Health.UP, Health.DOWN, HealthReason.PROBE_FAILED), logging.WARNING),
        (ev.HealthChanged("m", "a", Health.PROBATION, Health.UP, HealthReason.PROBE_OK), logging.INFO),
        (ev.FailoverStep("m", "promote", "a", True, 0.1), logging.INFO),
        (ev.FailoverStep("m", "promote", "a", False, 0.1), logging.ERROR),
        (ev.ConfigChanged(True, ("x",)), logging.INFO),
        (ev.ConfigChanged(False, (), ("x",)), logging.ERROR),
        (ev.CertificatesChanged("callers", True), logging.INFO),
        (ev.JwtKeysChanged(True, 1), logging.INFO),
        (ev.JwtKeysChanged(False, 0, "x"), logging.ERROR),
        (ev.LoginChanged("main", "n1", "acme"), logging.INFO),
        (ev.LoginChanged("main", "n1", None, "y"), logging.ERROR),
        (ev.SecretCommandEnded("command x"), logging.DEBUG),
        (ev.SecretCommandEnded("command x", "y", kept=True), logging.ERROR),
        (ev.CertificatesChanged("callers", False, "x"), logging.ERROR),
        (ev.CredentialAlarm(ev.CredentialKind.CERTIFICATES, "callers", None, ev.AlarmChange.BEGUN, "x"), logging.ERROR),
        (ev.CredentialAlarm(ev.CredentialKind.CERTIFICATES, "callers", None, ev.AlarmChange.MENDED), logging.INFO),
        (ev.ConnectionClosed("t", "a", Access.READ_ONLY, CloseReason.IDLE), logging.DEBUG),
        (ev.ConnectionClosed("t", "a", Access.READ_ONLY, CloseReason.OUT_OF_SYNC), logging.INFO),
    ],
)
def test_levels_say_what_an_event_means_to_an_operator(event, level):
    written = Written("debug")
    written.sink.emit(event)
    assert [at for at, _, _ in written.lines] == [level]


def test_every_phase_has_a_level():
    written = Written("debug")
    for phase in Phase:
        written.sink.emit(ev.PhaseChanged("m", phase, phase, PhaseReason.DRAINED, None, 1, 1))
    assert len(written.lines) == len(Phase)


def test_a_dead_servers_connect_failures_do_not_flood_the_log():
    written = Written("info")
    for _ in range(1000):
        written.sink.emit(ev.ConnectFailed("acme", "pg1", "connection refused"))
    assert [fields["times"] for _, _, fields in written.lines] == [2**power for power in range(10)]
    written.sink.emit(ev.HealthChanged("main", "pg1", Health.DOWN, Health.UP, HealthReason.PROBE_OK))
    written.sink.emit(ev.ConnectFailed("acme", "pg1", "connection refused"))
    assert written.lines[-1][2]["times"] == 1


def test_all_events_can_be_written_as_json():
    stream = log("debug")
    sink = TelemetrySink(level="debug")
    for event in ALL_EVENTS:
        sink.emit(event)
    # The end of the request tells; only counted; for the audit log.
    silent = (ev.RequestAdmitted, ev.NotificationsHeard, ev.CredentialAlarm)
    assert len(lines(stream)) == sum(not isinstance(event, silent) for event in ALL_EVENTS)


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match="loud"):
        threshold_of("loud")


def test_an_alarm_about_a_credential_stands_in_the_audit_log(tmp_path):
    file = tmp_path / "audit.jsonl"
    audit = AuditLog(AuditPolicy(str(file)))
    sink = TelemetrySink(write=lambda *_, **__: None, audit=audit)
    about = (ev.CredentialKind.LOGIN, "main/n1", "acme")
    sink.emit(ev.CredentialAlarm(*about, ev.AlarmChange.BEGUN, "no such password"))
    sink.emit(ev.CredentialAlarm(*about, ev.AlarmChange.MENDED, lasted_s=2.5))
    audit.close()
    begun, ended = map(json.loads, file.read_text().splitlines())
    same = {"what": "credential.login", "who": "router", "tenant": "acme", "about": "main/n1"}
    assert begun == {"at": begun["at"], **same, "outcome": "trouble", "why": "no such password"}
    assert ended == {"at": ended["at"], **same, "outcome": "mended", "took_s": 2.5}
