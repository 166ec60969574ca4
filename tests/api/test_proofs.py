"""Who is not let in: every way to be nearly somebody, over real TLS; and what is taken away while a stream lives."""

from __future__ import annotations

import asyncio
import datetime as dt
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pointsman
import pytest
from google.rpc import status_pb2
from pointsman.v1 import admin_service_pb2, admin_service_pb2_grpc, query_service_pb2_grpc, transaction_service_pb2_grpc
from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import transaction_service_pb2 as tx_pb

from router.model.errors import RouterError
from router.model.events import JwtKeysChanged
from router.model.policy import ServerPolicy
from tests.api.conftest import World, eventually
from tests.api.proof_world import (
    BOTH,
    GLOBEX,
    HASHED,
    OPERATOR,
    QUERY,
    READER,
    WEB,
    ProofWorld,
    bearer,
    claim,
    tenants,
    topology,
)
from tests.api.reading import info_of, reason_of
from tests.support.builders import replace_tenants
from tests.support.certificates import Authority, Issued
from tests.support.signed_tokens import Issuer, by_hand, entry_of_weak_key

UNAUTHENTICATED, DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED
HOUR = dt.timedelta(hours=1)

Make = Callable[[Authority], Issued | None]

NO_HANDSHAKE: dict[str, Make] = {
    "no certificate": lambda ca: None,
    "of another authority": lambda ca: Authority("other").issue(uris=[WEB]),
    "of an authority of the same name": lambda ca: Authority("tests").issue(uris=[WEB]),
    "expired": lambda ca: ca.issue(uris=[WEB], ends=-HOUR),
    "not valid yet": lambda ca: ca.issue(uris=[WEB], starts=HOUR),
    "an operator's": lambda ca: Authority("operators").issue(uris=[OPERATOR]),
}
NOBODY: dict[str, Make] = {
    "another trust domain": lambda ca: ca.issue(uris=["spiffe://example.com/acme/web"]),
    "a trust domain in capitals": lambda ca: ca.issue(uris=["spiffe://EXAMPLE.org/acme/web"]),
    "another path": lambda ca: ca.issue(uris=["spiffe://example.org/acme/db"]),
    "a longer path": lambda ca: ca.issue(uris=[f"{WEB}/more"]),
    "a shorter path": lambda ca: ca.issue(uris=["spiffe://example.org/acme"]),
    "two URIs": lambda ca: ca.issue(uris=[WEB, READER]),
    "the same URI twice": lambda ca: ca.issue(uris=[WEB, WEB]),
    "a URI of another kind": lambda ca: ca.issue(uris=["https://example.org/acme/web"]),
    "another URI beside a good name": lambda ca: ca.issue(uris=["https://x.example"], dns=["web.acme.example"]),
    "an unknown SPIFFE id beside a good name": lambda ca: ca.issue(
        uris=["spiffe://example.org/x"], dns=["web.acme.example"]
    ),
    "a common name only": lambda ca: ca.issue(common_name="web.acme.example"),
    "a SPIFFE id as common name": lambda ca: ca.issue(common_name=WEB),
    "a tenant as common name": lambda ca: ca.issue(common_name="acme"),
    "a tenant as name": lambda ca: ca.issue(dns=["acme"]),
    "an unknown name": lambda ca: ca.issue(dns=["web.globex.example"]),
    "a wildcard": lambda ca: ca.issue(dns=["*.acme.example"]),
    "a name below": lambda ca: ca.issue(dns=["x.web.acme.example"]),
    "a SPIFFE id as name": lambda ca: ca.issue(dns=["example.org"]),
    "no name at all": lambda ca: ca.issue(),
    "more names than are looked at": lambda ca: ca.issue(dns=[f"n{n}.example" for n in range(40)]),
}


@pytest.fixture
def proofs(tmp_path: Path) -> ProofWorld:
    return ProofWorld(tmp_path, mutual=True)


@pytest.fixture
def signed(tmp_path: Path) -> ProofWorld:
    return ProofWorld(tmp_path, mutual=False)


async def refused(
    proofs: ProofWorld, world: World, code: grpc.StatusCode, own: Issued | None, *metadata: tuple[str, str]
) -> str:
    """Refused before anything was done; the words."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await proofs.query(world, own, *metadata)
    assert caught.value.code() is code, caught.value.details()
    assert not world.executor.requests
    return str(caught.value.details())


# --- certificates --------------------------------------------------------------------------------------------------


async def test_nobody_without_a_good_certificate(policy: ServerPolicy, proofs: ProofWorld) -> None:
    async with proofs.serving(policy) as world:
        for make in NO_HANDSHAKE.values():
            await refused(proofs, world, grpc.StatusCode.UNAVAILABLE, make(proofs.authority), bearer(HASHED))


async def test_certificates_that_prove_nobody(policy: ServerPolicy, proofs: ProofWorld) -> None:
    async with proofs.serving(policy) as world:
        for make in NOBODY.values():
            own = make(proofs.authority)
            await refused(proofs, world, UNAUTHENTICATED, own)
            await refused(proofs, world, UNAUTHENTICATED, own, claim("acme"))
        assert not world.executor.tenants


async def test_a_certificate_names_its_tenant(policy: ServerPolicy, proofs: ProofWorld) -> None:
    async with proofs.serving(policy) as world:
        issue = proofs.authority.issue
        await proofs.query(world, issue(uris=[WEB], common_name="globex"))
        await proofs.query(world, issue(uris=[GLOBEX], dns=["web.acme.example"]))
        await proofs.query(world, issue(dns=["elsewhere.example", "web.acme.example"]), claim("acme"))
        await proofs.query(world, issue(uris=[BOTH]), claim("globex"))
        await proofs.query(world, issue(uris=["spiffe://example.org/unknown"]), bearer(HASHED))
        await proofs.query(world, issue(uris=[WEB]), bearer(HASHED))
        assert world.executor.tenants == ["acme", "globex", "acme", "globex", "acme", "acme"]


async def test_a_claim_only_chooses(policy: ServerPolicy, proofs: ProofWorld) -> None:
    async with proofs.serving(policy) as world:
        web, both = proofs.authority.issue(uris=[WEB]), proofs.authority.issue(uris=[BOTH])
        for own, *metadata in (
            (web, claim("globex")),
            (web, claim("nobody")),
            (web, claim("Acme")),
            (web, claim("acme ")),
            (both,),
            (both, claim("umbrella")),
            (proofs.authority.issue(uris=[GLOBEX]), bearer(HASHED)),
            (proofs.authority.issue(uris=[GLOBEX]), bearer(proofs.issuer.token())),
        ):
            words = await refused(proofs, world, DENIED, own, *metadata)
            assert "umbrella" not in words or metadata == [claim("umbrella")]
        for metadata in (
            (claim("acme"), claim("globex")),
            (bearer(HASHED), bearer(HASHED)),
            (bearer("unknown"),),
            (claim("a" * 200),),
        ):
            await refused(proofs, world, UNAUTHENTICATED, web, *metadata)


async def test_the_lesser_role_counts(policy: ServerPolicy, proofs: ProofWorld) -> None:
    async with proofs.serving(policy) as world:
        for own, token in ((READER, HASHED), (WEB, "reader-token")):
            async with proofs.channel(world, proofs.authority.issue(uris=[own])) as channel:
                stub: Any = query_service_pb2_grpc.QueryServiceStub(channel)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.Execute(pb.ExecuteRequest(statement=QUERY.statement), metadata=(bearer(token),))
                assert reason_of(caught.value) == ("ROLE_DENIED", "no")


async def test_operators_have_an_authority_of_their_own(policy: ServerPolicy, proofs: ProofWorld) -> None:
    request = admin_service_pb2.GetServerInfoRequest()
    operators, callers = proofs.operators, proofs.authority
    async with proofs.serving(policy) as world:
        for own, code in (
            (operators.issue(uris=[OPERATOR]), None),
            (operators.issue(uris=[WEB]), UNAUTHENTICATED),
            (operators.issue(common_name=OPERATOR), UNAUTHENTICATED),
            (operators.issue(uris=[OPERATOR, WEB]), UNAUTHENTICATED),
            (callers.issue(uris=[OPERATOR]), grpc.StatusCode.UNAVAILABLE),
            (callers.issue(uris=[WEB]), grpc.StatusCode.UNAVAILABLE),
        ):
            async with proofs.channel(world, own, admin=True) as channel:
                stub: Any = admin_service_pb2_grpc.AdminServiceStub(channel)
                if code is None:
                    await stub.GetServerInfo(request, timeout=5)
                    continue
                for metadata in ((), (bearer(HASHED),), (bearer(proofs.issuer.token()),)):
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await stub.GetServerInfo(request, metadata=metadata, timeout=5)
                    assert caught.value.code() is code
        async with proofs.channel(world, callers.issue(uris=[WEB])) as channel:
            stub = admin_service_pb2_grpc.AdminServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.GetServerInfo(request, timeout=5)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_what_is_taken_away_counts_on_open_streams(policy: ServerPolicy, proofs: ProofWorld) -> None:
    acme, globex = tenants()
    async with (
        proofs.serving(policy) as world,
        proofs.channel(world, proofs.authority.issue(uris=[WEB])) as channel,
    ):
        query: Any = query_service_pb2_grpc.QueryServiceStub(channel)
        stream, transaction = query.Multiplex(), transaction_service_pb2_grpc.TransactionServiceStub(channel).Transact()
        await transaction.write(tx_pb.TransactRequest(tag=1, begin=tx_pb.TransactBegin()))
        await transaction.read()
        assert (await answer(stream, 1)).WhichOneof("reply") == "query"
        without = replace(acme, callers=tuple(one for one in acme.callers if one.id != WEB))
        replace_tenants(world.directory, topology(without, globex))
        assert failure(await answer(stream, 2)) == "UNAUTHENTICATED"
        await transaction.write(tx_pb.TransactRequest(tag=2))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_to_end(transaction)
        assert caught.value.code() is UNAUTHENTICATED
        world.executor.requests.clear()
        await refused(proofs, world, UNAUTHENTICATED, proofs.authority.issue(uris=[WEB]))


async def test_a_certificate_that_ends_ends_its_stream(policy: ServerPolicy, proofs: ProofWorld) -> None:
    own = proofs.authority.issue(uris=[WEB], ends=dt.timedelta(seconds=2))
    async with proofs.serving(policy) as world, proofs.channel(world, own) as channel:
        query: Any = query_service_pb2_grpc.QueryServiceStub(channel)
        stream = query.Multiplex()
        assert (await answer(stream, 1)).WhichOneof("reply") == "query"
        await asyncio.sleep(2.1)
        assert failure(await answer(stream, 2)) == "UNAUTHENTICATED"


# --- signed tokens -------------------------------------------------------------------------------------------------


def forged(issuer: Issuer) -> Iterator[tuple[str, str]]:
    other = Issuer()
    now = time.time()
    good = issuer.token()
    head, body, signature = good.split(".")
    hs, none = {"alg": "HS256", "typ": "JWT"}, {"alg": "none"}
    yield "no algorithm", by_hand({**none, "kid": "e"}, {}, None)
    yield "no algorithm, in capitals", by_hand({"alg": "NONE", "kid": "r"}, {}, None)
    yield "no algorithm, but a signature", by_hand({**none, "kid": "e"}, {}, b"x")
    yield "HS256 with the public key", by_hand({**hs, "kid": "r"}, {}, issuer.public_pem("r"))
    yield "HS256 with the elliptic public key", by_hand({**hs, "kid": "e"}, {}, issuer.public_pem("e"))
    yield "HS256 with an empty secret", by_hand({**hs, "kid": "r"}, {}, b"")
    yield "HS256 with a secret of the set", by_hand({**hs, "kid": "secret"}, {}, b"known to all")
    yield "the algorithm of another key", issuer.token("e", header={"kid": "r"})
    yield "the name of another key", issuer.token("d", header={"kid": "e"})
    yield "an unknown key", issuer.token("e", header={"kid": "x"})
    yield "no key named", issuer.token("e", header={"kid": None})
    yield "a number as key", issuer.token("e", header={"kid": "1"})
    yield "another issuer's key of that name", other.token("e")
    yield "a key that it brings itself", other.token("e", header={"jwk": {"kty": "EC"}, "jku": "https://x.example/"})
    yield "critical extensions", issuer.token("e", header={"crit": ["exp"], "exp": now})
    yield "a weak key", by_hand({"alg": "RS256", "kid": "weak"}, {}, b"x")
    yield "another audience", issuer.token(aud="billing")
    yield "other audiences", issuer.token(aud=["billing", "pointsman-admin"])
    yield "no audience", issuer.token(aud=None)
    yield "an empty audience", issuer.token(aud=[])
    yield "another issuer", issuer.token(iss="https://login.example.com")
    yield "an issuer with a slash", issuer.token(iss="https://login.example.net/")
    yield "no issuer", issuer.token(iss=None)
    yield "expired", issuer.token(exp=now - 1)
    yield "without an end", issuer.token(exp=None)
    yield "an end that is no time", by_hand({**hs, "kid": "e"}, {"exp": "never"}, b"")
    yield "not valid yet", issuer.token(nbf=now + 60)
    yield "issued in the future", issuer.token(iat=now + 60)
    yield "no subject", issuer.token(sub=None)
    yield "an empty subject", issuer.token(sub="")
    yield "an unknown subject", issuer.token(sub="acme")
    yield "a subject with a newline", issuer.token(sub="acme-web\n")
    yield "a subject in capitals", issuer.token(sub="ACME-WEB")
    yield "another body", f"{head}.{other.token(sub='globex-web').split('.')[1]}.{signature}"
    yield "another signature", f"{head}.{body}.{issuer.token(sub='globex-web').split('.')[2]}"
    yield "no signature", f"{head}.{body}."
    yield "half a signature", good[:-20]
    yield "nothing in it", ".."
    yield "no token at all", "a.b.c"


async def test_forged_tokens(policy: ServerPolicy, signed: ProofWorld) -> None:
    secret = {"kty": "oct", "k": "a25vd24gdG8gYWxs", "alg": "HS256"}  # "known to all"
    signed.issuer.publish(signed.jwks, secret=secret, weak=entry_of_weak_key())
    async with signed.serving(policy) as world:
        count = 0
        for kind, token in forged(signed.issuer):
            words = await refused(signed, world, UNAUTHENTICATED, None, bearer(token))
            assert not token.strip(".") or token not in words, kind
            count += 1
        assert count >= 30
        await refused(signed, world, DENIED, None, bearer(signed.issuer.token()), claim("globex"))
        assert {str(one[2].reason.value) for one in world.executor.refusals} == {"unauthenticated", "tenant_denied"}


@pytest.mark.parametrize("key", ["r", "e", "d"])
async def test_good_tokens(policy: ServerPolicy, signed: ProofWorld, key: str) -> None:
    async with signed.serving(policy) as world:
        await signed.query(world, None, bearer(signed.issuer.token(key, aud=["billing", "pointsman"])))
        await signed.query(world, None, bearer(signed.issuer.token(key, sub="globex-web")), claim("globex"))
        await signed.query(world, None, bearer(HASHED))
        assert world.executor.tenants == ["acme", "globex", "acme"]


async def test_keys_change_without_a_restart(policy: ServerPolicy, signed: ProofWorld) -> None:
    signed.issuer.publish(signed.jwks, "e")
    async with signed.serving(policy) as world, signed.channel(world, None) as channel:
        query: Any = query_service_pb2_grpc.QueryServiceStub(channel)
        stream = query.Multiplex(metadata=(bearer(signed.issuer.token("e")),))

        def told() -> list[Any]:
            return world.events.of(JwtKeysChanged)

        assert (await answer(stream, 1)).WhichOneof("reply") == "query"
        signed.jwks.write_text("half of it")
        await eventually(lambda: told() and not told()[-1].applied, 10)
        assert (await answer(stream, 2)).WhichOneof("reply") == "query"  # the old ones go on
        signed.issuer.publish(signed.jwks, "d")
        await eventually(lambda: told()[-1].applied, 10)
        assert failure(await answer(stream, 3)) == "UNAUTHENTICATED"
        await signed.query(world, None, bearer(signed.issuer.token("d")))
        world.executor.requests.clear()
        await refused(signed, world, UNAUTHENTICATED, None, bearer(signed.issuer.token("e")))


async def test_keys_that_come_from_an_address(policy: ServerPolicy, signed: ProofWorld) -> None:
    """A key that is not known yet is asked for; its caller is told to come back."""
    with served(lambda: signed.issuer.set_of_keys(*names)) as address:
        names = ["e"]
        signed.keys = address
        async with signed.serving(policy) as world:
            await eventually(lambda: world.events.of(JwtKeysChanged), 10)
            await signed.query(world, None, bearer(signed.issuer.token("e")))
            names.append("d")
            world.executor.requests.clear()
            await refused(signed, world, grpc.StatusCode.UNAVAILABLE, None, bearer(signed.issuer.token("d")))
            await eventually(lambda: len(world.events.of(JwtKeysChanged)) == 2, 10)
            await signed.query(world, None, bearer(signed.issuer.token("d")))
            world.executor.requests.clear()
            await refused(signed, world, UNAUTHENTICATED, None, bearer(signed.issuer.token("r")))


def test_a_router_does_not_start_without_its_keys(policy: ServerPolicy, signed: ProofWorld) -> None:
    for content in ("", "{}", '{"keys": []}', '{"keys": [{"kty": "oct", "k": "eA"}]}', "[" * 100_000):
        signed.jwks.write_text(content)
        with pytest.raises(RouterError, match="no keys for signed tokens"):
            asyncio.run(_make(signed.policy(policy)))


async def _make(policy: ServerPolicy) -> None:
    World(policy)


async def test_a_client_renews_its_token_without_a_failed_call(policy: ServerPolicy, signed: ProofWorld) -> None:
    issued = 0

    def token() -> str:
        nonlocal issued
        issued += 1
        return signed.issuer.token(exp=time.time() + 1.5)

    async with signed.serving(policy) as world:
        ca = signed.directory / "ca.pem"
        ca.write_bytes(signed.authority.pem)
        address = world.server.public_address.replace("127.0.0.1", "localhost")
        async with pointsman.connect(address, token=token, ca=str(ca)) as db:
            end, done = time.monotonic() + 3.5, 0
            while time.monotonic() < end:
                await db.execute("s", timeout=10)
                done += 1
                await asyncio.sleep(0.02)
    assert issued >= 3
    assert len(world.executor.requests) == done


async def test_a_transaction_ends_with_its_token(policy: ServerPolicy, signed: ProofWorld) -> None:
    async with signed.serving(policy) as world, signed.channel(world, None) as channel:
        stub: Any = transaction_service_pb2_grpc.TransactionServiceStub(channel)
        call = stub.Transact(metadata=(bearer(signed.issuer.token(exp=time.time() + 1)),))
        await call.write(tx_pb.TransactRequest(tag=1, begin=tx_pb.TransactBegin()))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_to_end(call)
        assert reason_of(caught.value) == ("UNAUTHENTICATED", "maybe")


async def test_a_listener_ends_with_its_token(policy: ServerPolicy, signed: ProofWorld) -> None:
    async with signed.serving(policy) as world, signed.channel(world, None) as channel:
        stub: Any = query_service_pb2_grpc.QueryServiceStub(channel)
        metadata = (bearer(signed.issuer.token(exp=time.time() + 1)),)
        call = stub.Listen(pb.ListenRequest(channels=["jobs"]), metadata=metadata)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert reason_of(caught.value) == ("UNAUTHENTICATED", "no")
        assert world.listeners.closed == 1


# --- what the tests ask with ---------------------------------------------------------------------------------------


async def answer(stream: Any, number: int) -> pb.MultiplexReply:
    await stream.write(pb.MultiplexRequest(calls=[pb.MultiplexCall(id=number, query=QUERY)]))
    async with asyncio.timeout(5):
        while True:
            for reply in (await stream.read()).replies:
                if reply.id == number:
                    return reply


def failure(reply: pb.MultiplexReply) -> str:
    return info_of(status_pb2.Status.FromString(reply.failure.SerializeToString())).reason


async def read_to_end(call: Any) -> None:
    async with asyncio.timeout(10):
        while await call.read() is not grpc.aio.EOF:
            pass


@contextmanager
def served(content: Callable[[], bytes]) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content())

        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/keys"
        finally:
            server.shutdown()
            thread.join()


