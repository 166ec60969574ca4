"""What a process that serves does not load."""

from __future__ import annotations

import subprocess
import sys

_SERVE = """
from router import interpreter
interpreter.begin()
import router.app, sys
print(*({"rich", "pygments", "jwt", "cryptography", "pydantic", "yaml"} & set(sys.modules)))
import rich.console  # the console still can
"""


def test_a_serving_process_loads_no_console_no_cryptography_and_no_reader_of_configurations() -> None:
    """26 MiB of memory. Callers with certificates or signed tokens need a part of it, and so do tenants in files of
    their own, which are judged here."""
    done = subprocess.run([sys.executable, "-c", _SERVE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
