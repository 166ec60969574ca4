"""What a process that serves does not load, and where it runs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from router import interpreter

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


_PLACED = """
import os, sys, threading
from router import interpreter
begun, asked = threading.Event(), threading.Event()
found = []
def look(*waits):
    for one in waits:
        one.wait()
    found.append(os.sched_getaffinity(0))
earlier = threading.Thread(target=look, args=(asked,))
earlier.start()
interpreter.stay_on([int(sys.argv[1]), int(sys.argv[2])], 2)
later = threading.Thread(target=look)
later.start()
later.join()
asked.set()
earlier.join()
print(*(f"{cpu}" for one in found for cpu in one))
"""


def test_all_threads_stay_on_the_processor_of_their_process_place() -> None:
    allowed = sorted(os.sched_getaffinity(0))
    command = [sys.executable, "-c", _PLACED, str(allowed[0]), str(allowed[-1])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(allowed[-1])] * 2


def test_without_processors_nothing_changes() -> None:
    before = os.sched_getaffinity(0)
    interpreter.stay_on([])
    assert os.sched_getaffinity(0) == before


def test_a_processor_that_is_not_there_is_told_with_those_that_are() -> None:
    allowed = sorted(os.sched_getaffinity(0))
    with pytest.raises(ValueError, match="no processor 4096 for this process; it may use " + str(allowed[0])):
        interpreter.stay_on([allowed[0], 4096])
    assert sorted(os.sched_getaffinity(0)) == allowed
