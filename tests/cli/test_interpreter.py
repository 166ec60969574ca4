"""What a process that serves does not load."""

from __future__ import annotations

import subprocess
import sys

_SERVE = """
from router import interpreter
interpreter.begin()
import router.app, sys
print(*({"rich", "pygments", "jwt", "cryptography"} & set(sys.modules)))
import rich.console  # the console still can
"""


def test_a_serving_process_loads_no_console_and_no_cryptography() -> None:
    """15 MiB of memory, which only callers with certificates or signed tokens need a part of."""
    done = subprocess.run([sys.executable, "-c", _SERVE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
