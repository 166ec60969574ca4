"""The public face: names, version, typing, and the oldest supported runtime."""

from __future__ import annotations

import asyncio
import importlib.metadata
import inspect
import subprocess
import sys
from pathlib import Path

import pointsman

from tests.sdk.fake_router import FakeRouter

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "clients" / "python" / "pointsman"
OLD_PYTHON = REPOSITORY / ".venv-protos" / "bin" / "python"

NAMES = """
TLS Aborted BatchResults Cancelled CheckViolation Client ClientClosed Column ColumnBatch CopyResult CopyStream
DataError DataLoss DeadlineExceeded Deadlock DuplicateObject Error ExclusionViolation Executed ForeignKeyViolation Gap
GapReason Guard GuardFailed IntegrityError InternalError Interval InvalidRequest Json Listening LockTimeout MultiRange
NoSingleRow NotNullViolation NotSupported Notice Notification NumericOutOfRange Outcome OutcomeUnknown
PermissionDenied PgFields PoolTimeout RaisedException Range ReadOnlyViolation Receipt Record ResourceExhausted Result
ResultTooLarge RowStream Rows Savepoint SerializationFailure SqlError SqlSyntaxError Step TokenLost Transaction
TransactionLost Unauthenticated Unavailable UndefinedColumn UndefinedFunction UndefinedObject UndefinedTable
UniqueViolation WriteOutcome __version__ connect no_rows rows_affected rows_at_least sync
"""

QUERY = """
import asyncio, sys
sys.path.insert(0, sys.argv[2])
import google.protobuf, grpc, pointsman

async def main():
    async with pointsman.connect(sys.argv[1], tenant="acme", token="secret", timeout=10) as db:
        rows = await db.query("select $1", 1)
        done = await db.execute("insert", b"x")
    print(grpc.__version__, google.protobuf.__version__, rows[0].n, done.rowcount)

asyncio.run(main())
with pointsman.sync.connect(sys.argv[1], timeout=10) as db:
    print(db.query_value("select 1"))
"""


def test_the_public_names_are_these_and_exist() -> None:
    assert sorted(pointsman.__all__) == sorted(NAMES.split())
    assert all(hasattr(pointsman, name) for name in pointsman.__all__)


def test_every_exception_is_an_error_of_the_tree() -> None:
    kinds = [getattr(pointsman, name) for name in pointsman.__all__]
    raised = [kind for kind in kinds if inspect.isclass(kind) and issubclass(kind, Exception)]
    assert len(raised) > 30
    assert all(issubclass(kind, pointsman.Error) for kind in raised)


def test_the_version_is_that_of_the_distribution() -> None:
    assert pointsman.__version__ == importlib.metadata.version("pointsman-client")


def test_the_package_is_typed_and_needs_only_grpc_and_protobuf() -> None:
    assert (PACKAGE / "py.typed").exists()
    allowed = sys.stdlib_module_names | {"grpc", "google", "pointsman", "_collections"}
    for file in PACKAGE.glob("*.py"):
        for line in file.read_text("utf-8").splitlines():
            words = line.strip().split()
            if words[:1] in (["from"], ["import"]) and len(words) > 1 and not line.strip().endswith("."):
                assert words[1].partition(".")[0] in allowed, f"{file.name}: {line}"


async def test_a_query_runs_on_the_oldest_runtime(router: FakeRouter) -> None:
    process = await asyncio.create_subprocess_exec(
        OLD_PYTHON, "-W", "error", "-c", QUERY, router.address, str(PACKAGE.parent),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err.decode()
    first, second = out.decode().splitlines()
    grpc_version, protobuf_version, value, rowcount = first.split()
    assert (value, rowcount, second) == ("1", "1", "1")
    assert grpc_version.startswith("1.71.")
    assert protobuf_version.startswith("5.29.")
    assert router.metadata[0]["user-agent"].startswith("grpc-python-asyncio/1.71.")
