"""A worker: started by the control process as `python -m router.workers FD`, never by hand."""

from __future__ import annotations

import os
import sys

from router import interpreter


def main() -> int:
    """Run a worker on the control channel that this process has inherited."""
    interpreter.begin()
    # gRPC reads them when it is imported.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from router.workers.worker import run_worker

    return run_worker(int(sys.argv[1]))


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is closed; the interpreter's own tidying up takes longer than all of the drain.
    os._exit(status)
