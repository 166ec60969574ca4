"""`make mutants`: plant each bug in a copy of the tree, run its tests there, and tell which of them noticed it."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.mutants.planting import ROOT, Mutant
from tests.mutants.table import MUTANTS

TIMEOUT_S = 600.0
ONCE = ("-q", "-x", "-p", "no:randomly", "-p", "no:xdist", "--force-reruns", "0")
"""To the first failure, which counts: no test gets a second chance here, whatever its marker says, as what a bug breaks
only now and then would pass the second time."""
COPIED = ("router", "tests", "clients", "protos", "deploy", "pyproject.toml", "README.md", "CHANGELOG.md", "Makefile")


@dataclass(frozen=True)
class Verdict:
    """What became of one mutant."""

    name: str
    file: str
    killed: bool
    by: str
    """The test, or the seed, that noticed it."""
    took_s: float


def main() -> int:
    """0 when every mutant was noticed."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="only these")
    parser.add_argument("--json", type=Path, help="write the table there")
    options = parser.parse_args()
    chosen = [one for one in MUTANTS if not options.names or one.name in options.names]
    verdicts = judge_all(chosen)
    killed = sum(one.killed for one in verdicts)
    print(f"{killed} of {len(verdicts)} mutants were noticed")
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(one) for one in verdicts], indent=1) + os.linesep)
    return 0 if killed == len(verdicts) else 1


def judge_all(mutants: Sequence[Mutant]) -> list[Verdict]:
    """One after the other, each in the same copy, put back afterwards."""
    verdicts = []
    with tempfile.TemporaryDirectory(prefix="pointsman-mutants-") as name:
        tree = Path(name) / "tree"
        tree.mkdir()
        for part in COPIED:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.exists():
                shutil.copy(source, tree / part)
        for mutant in mutants:
            mutant.plant(tree)
            try:
                verdicts.append(judge(mutant, tree))
            finally:
                shutil.copy(ROOT / mutant.file, tree / mutant.file)
            one = verdicts[-1]
            print(f"{'noticed ' if one.killed else 'SURVIVED'} {one.name:42} {one.took_s:6.1f} s  {one.by}", flush=True)
    return verdicts


def judge(mutant: Mutant, tree: Path) -> Verdict:
    """Run the mutant's tests in the tree that has it."""
    if mutant.faults:
        command = [sys.executable, "-m", "tests.mutants.simulated", mutant.name]
    else:
        command = [sys.executable, "-m", "pytest", *ONCE, *mutant.tests]
    began = time.perf_counter()
    # The copy first: the installed packages point at the tree that was copied.
    paths = os.pathsep.join([str(tree), str(tree / "clients/python")])
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        ran = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        by = next(iter(re.findall(r"^FAILED (.*)$", ran.stdout, re.M)), "")
        killed = ran.returncode == 1 and bool(by)
        if not killed and (ran.returncode not in (0, 1) or "\nERROR " in ran.stdout):
            by = f"could not be run: {(ran.stdout + ran.stderr).strip().splitlines()[-1:]}"
    except subprocess.TimeoutExpired:
        killed, by = True, f"not done within {TIMEOUT_S:g} s"
    return Verdict(mutant.name, mutant.file, killed, by[:160], round(time.perf_counter() - began, 1))


if __name__ == "__main__":
    sys.exit(main())
