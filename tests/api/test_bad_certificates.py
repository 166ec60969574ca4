"""Certificate files that are of no use, while the router runs: the old ones go on, callers notice nothing, and
operators are told which file it is and why, also when nobody connects.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from router.api.certificate_watch import CertificateWatch, Look
from router.api.certificates import Certificates, NotUsable, PortFiles
from router.config.certificate_files import mistakes
from router.model.errors import RouterError
from router.model.events import AlarmChange, CertificatesChanged, CredentialAlarm
from router.model.policy import ServerPolicy
from router.model.port_policies import ListenerTls
from router.system import SystemClock
from router.workers.messages import Begin
from tests.api.conftest import eventually
from tests.api.test_tls import Port, serving
from tests.support.builders import Recorder
from tests.support.certificates import Authority

OTHER = Authority("other")


def encrypted(key: bytes) -> bytes:
    loaded = load_pem_private_key(key, None)
    return loaded.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word"))


def renamed(pem: bytes) -> bytes:
    """As `openssl x509 -trustout` writes it: OpenSSL reads it, gRPC does not."""
    return pem.replace(b" CERTIFICATE", b" TRUSTED CERTIFICATE")


# What is done to the files; the file that the problem names, and words of it.
BAD: dict[str, tuple[Callable[[Port], object], str, str]] = {
    "ca: no certificate": (lambda port: port.ca.write_text("no certificate"), "ca.pem", "holds no certificates"),
    "ca: empty": (lambda port: port.ca.write_bytes(b""), "ca.pem", "holds no certificates"),
    "ca: a key": (lambda port: port.ca.write_bytes(port.key.read_bytes()), "ca.pem", "holds no certificates"),
    "ca: another kind": (lambda port: port.ca.write_bytes(renamed(OTHER.pem)), "ca.pem", "holds no certificates"),
    "ca: half of a bundle": (
        lambda port: port.ca.write_bytes(port.authority.pem + OTHER.pem[: len(OTHER.pem) // 2]),
        "ca.pem",
        "not only whole ones",
    ),
    "ca: gone": (lambda port: port.ca.unlink(), "ca.pem", "no such file"),
    "ca: a folder": (lambda port: (port.ca.unlink(), port.ca.mkdir()), "ca.pem", "is a directory"),
    "cert: no certificate": (lambda port: port.cert.write_text("no certificate"), "cert.pem", "do not serve together"),
    "cert: gone": (lambda port: port.cert.unlink(), "cert.pem", "no such file"),
    "key: another's": (lambda port: port.key.write_bytes(OTHER.issue().key), "key.pem", "not the certificate's"),
    "key: encrypted": (lambda port: port.key.write_bytes(encrypted(port.key.read_bytes())), "key.pem", ""),
    "key: gone": (lambda port: port.key.unlink(), "key.pem", "no such file"),
}


@pytest.mark.parametrize("what", BAD)
async def test_the_old_ones_go_on_and_the_file_is_named(policy: ServerPolicy, tmp_path: Path, what: str) -> None:
    break_it, file, words = BAD[what]
    port = Port(tmp_path, mutual=True)
    own, stranger = port.authority.issue(dns=["acme"]), OTHER.issue(dns=["acme"])
    good = {path: path.read_bytes() for path in (port.cert, port.key, port.ca)}
    async with serving(replace(policy, tls=port.tls)) as world:
        break_it(port)
        for _ in range(3):
            await port.query(world, own=own)
            with pytest.raises(Exception, match=r"UNAVAILABLE|DEADLINE"):
                await port.query(world, own=stranger, timeout=1.0)
        await eventually(lambda: world.events.of(CertificatesChanged))
        (told,) = world.events.of(CertificatesChanged)
        assert not told.applied
        assert f"{tmp_path}/{file}" in told.problem
        assert words in told.problem
        if port.ca.is_dir():
            port.ca.rmdir()
        for path, content in good.items():
            path.write_bytes(content)
        await port.query(world, own=own)
        await eventually(lambda: world.events.of(CertificatesChanged)[-1].applied)


async def test_each_new_mistake_is_told(policy: ServerPolicy, tmp_path: Path) -> None:
    port = Port(tmp_path)
    async with serving(replace(policy, tls=port.tls)) as world:
        cert = port.cert.read_bytes()
        port.cert.unlink()
        await port.query(world)
        port.key.unlink()
        port.cert.write_bytes(cert)
        await port.query(world)
        await eventually(lambda: len(world.events.of(CertificatesChanged)) == 2)
        first, second = world.events.of(CertificatesChanged)
        assert "cert.pem" in first.problem
        assert "key.pem" in second.problem


@pytest.mark.parametrize("what", ["", *BAD])
def test_who_starts_and_who_runs_judge_alike(tmp_path: Path, what: str) -> None:
    """Each has the check in a room of its own, config/ and api/, which may not know each other."""
    port = Port(tmp_path, mutual=True)
    break_it, _, words = BAD[what] if what else (lambda _: None, "", "")
    break_it(port)
    at_start = [message for _, message in mistakes(port.tls)]
    try:
        PortFiles(port.tls).read()
        running = []
    except NotUsable as error:
        running = [str(error)]
    assert len(at_start) == len(running) == bool(what)
    assert all(words in one for one in (*at_start, *running))
    if "serve together" not in " ".join(running):
        assert at_start == running


@pytest.mark.parametrize("what", BAD)
async def test_who_knows_what_served_last_begins_with_it_and_then_follows_the_files(
    policy: ServerPolicy, tmp_path: Path, what: str
) -> None:
    break_it, file, words = BAD[what]
    port = Port(tmp_path, mutual=True)
    known = PortFiles(port.tls).read()
    good = {path: path.read_bytes() for path in (port.cert, port.key, port.ca)}
    break_it(port)
    told: list[CertificatesChanged] = []
    with pytest.raises(RouterError, match=f"no TLS for callers: .*{file}"):
        Certificates(port.tls, "callers", told.append)
    assert not told
    certificates = Certificates(port.tls, "callers", told.append, known)
    assert certificates.renewed() is None
    (problem,) = told
    assert not problem.applied
    assert f"{tmp_path}/{file}" in problem.problem
    assert words in problem.problem
    if port.ca.is_dir():
        port.ca.rmdir()
    for path, content in good.items():
        path.write_bytes(content)
    assert certificates.renewed() is not None
    assert told[-1].applied
    assert certificates.renewed() is None
    assert len(told) == 2


async def test_what_served_last_is_kept_where_it_is_asked_for(tmp_path: Path) -> None:
    port = Port(tmp_path, mutual=True)
    async with watching(port.tls) as (watch, _):
        await asyncio.sleep(0.1)
        assert watch.kept("callers") is None
        await watch.keep("callers")
        await watch.keep("operators")
        first = watch.kept("callers")
        assert first == PortFiles(port.tls).read()
        assert watch.kept("operators") is None, "no TLS there"
        port.authority.issue(dns=["localhost"]).write(port.cert, port.key)
        await eventually(lambda: watch.kept("callers") != first)
        second = watch.kept("callers")
        assert second == PortFiles(port.tls).read()
        port.key.write_bytes(OTHER.issue().key)
        await eventually(watch.troubles)
        assert watch.kept("callers") == second


async def test_files_that_cannot_serve_are_not_kept(tmp_path: Path) -> None:
    port = Port(tmp_path)
    port.key.unlink()
    watch = CertificateWatch({"callers": port.tls}, SystemClock(), Recorder())
    await watch.keep("callers")
    assert watch.kept("callers") is None


def test_a_key_is_not_shown(tmp_path: Path) -> None:
    found = PortFiles(Port(tmp_path).tls).read()
    begin = Begin(1, 2, "127.0.0.1:0", None, found)  # type: ignore[arg-type]
    secret = found.key.splitlines()[1].decode()
    assert found.cert.splitlines()[1].decode() in repr(begin)
    assert secret not in repr(begin)
    assert pickle.loads(pickle.dumps(begin)) == begin


@asynccontextmanager
async def watching(tls: ListenerTls) -> AsyncIterator[tuple[CertificateWatch, Recorder]]:
    events = Recorder()
    watch = CertificateWatch({"callers": tls, "operators": ListenerTls()}, SystemClock(), events)
    task = asyncio.create_task(watch.run(0.02))
    yield watch, events
    task.cancel()
    await asyncio.wait({task})


@pytest.mark.parametrize("what", BAD)
async def test_operators_are_told_though_nobody_connects(tmp_path: Path, what: str) -> None:
    break_it, file, words = BAD[what]
    port = Port(tmp_path, mutual=True)
    good = {path: path.read_bytes() for path in (port.cert, port.key, port.ca)}
    async with watching(port.tls) as (watch, events):
        await asyncio.sleep(0.2)
        assert watch.troubles() == ()
        break_it(port)
        await eventually(watch.troubles)
        (trouble,) = watch.troubles()
        assert trouble.port == "callers"
        assert f"{tmp_path}/{file}" in trouble.problem
        assert words in trouble.problem
        assert 0 <= trouble.for_s < 5
        if port.ca.is_dir():
            port.ca.rmdir()
        for path, content in good.items():
            path.write_bytes(content)
        await eventually(lambda: not watch.troubles())
        alarms = events.of(CredentialAlarm)
        assert [(one.about, one.change) for one in alarms] == [
            ("callers", AlarmChange.BEGUN),
            ("callers", AlarmChange.MENDED),
        ]
        assert alarms[0].problem == trouble.problem


def test_files_that_are_being_written_are_not_judged(tmp_path: Path) -> None:
    port = Port(tmp_path, mutual=True)
    look = Look(PortFiles(port.tls))
    for size in range(100, 120):
        port.ca.write_bytes(port.authority.pem[:size])
        assert look.problem() is None
    assert "not only whole ones" in (look.problem() or ""), "nobody writes any more"
    port.ca.write_bytes(port.authority.pem)
    assert [look.problem() for _ in range(3)] == [None, "", ""]


async def test_without_tls_nothing_is_watched() -> None:
    watch = CertificateWatch({"callers": ListenerTls(), "operators": ListenerTls()}, SystemClock(), Recorder())
    await asyncio.wait_for(watch.run(), 1)
    assert watch.troubles() == ()
