"""Plants the faults of ``mutants.py`` one by one in a copy of the tree, and tells which of them the tests do not notice.

    python tests/mutate.py [--only TEXT] [--jobs N]

Exit code 1 if more than ALLOWED survive, or if the tests fail without any fault. Takes about half an hour on two cores.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.mutants import MUTANTS, TESTS, Mutant  # noqa: E402

ALLOWED = 2
TIMEOUT_S = 600
"""A fault that makes the tests hang is noticed too."""
NOT_RUN = (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED, -signal.SIGTERM, -signal.SIGKILL)
"""Exit codes that tell nothing of the fault."""
_COPIED = ("framework", "triton_kernels", "experiments", "conf", "tests", "pyproject.toml", "README.md")


def plant(source: str, mutant: Mutant) -> str:
    """The text of a file with the fault. Raises ValueError unless it applies exactly once."""
    if (count := source.count(mutant.old)) != 1:
        raise ValueError(f"{mutant.name}: {mutant.old!r} stands {count} times in {mutant.file}; it must be once")
    return source.replace(mutant.old, mutant.new)


def fails(tests: list[str], mutant: Mutant | None = None) -> str:
    """How the tests fail in a copy of the tree with the fault; empty if they do not. Raises RuntimeError if they did not run."""
    with tempfile.TemporaryDirectory() as folder:
        for name in _COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, Path(folder) / name)
        if mutant is not None:
            file = Path(folder) / mutant.file
            file.write_text(plant(file.read_text(encoding="utf-8"), mutant), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", "-p", "no:cacheprovider", *tests]
        environment = {**os.environ, "PYTHONPATH": folder, "OMP_NUM_THREADS": "1"}
        try:
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return f"the tests hang for more than {TIMEOUT_S} s"
        if done.returncode in NOT_RUN:
            raise RuntimeError(
                f"the tests did not run to their end (exit code {done.returncode}):\n{done.stdout[-500:]}{done.stderr[-500:]}"
            )
        if done.returncode == 0:
            return ""
        last = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return last[-1] if last else f"exit code {done.returncode}: {done.stderr[-200:]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="faults whose name or file holds this text")
    parser.add_argument("--jobs", type=int, default=1, help="how many are tried at a time")
    parser.add_argument("--trust-tests", action="store_true", help="do not run the tests without any fault first")
    arguments = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if arguments.only in mutant.name or arguments.only in mutant.file]
    needed = dict.fromkeys(test for mutant in chosen for test in TESTS[mutant.file])
    if not arguments.trust_tests and (failure := fails(list(needed))):
        print(f"The tests fail without any fault, so nothing can be said: {failure}")
        return 1

    def attempt(mutant: Mutant) -> bool:
        start = time.monotonic()
        failure = fails(TESTS[mutant.file], mutant)
        print(
            f"{'killed  ' if failure else 'SURVIVES'} {time.monotonic() - start:4.0f} s  {mutant.name}  {failure[:150]}", flush=True
        )
        return not failure

    with ThreadPoolExecutor(arguments.jobs) as pool:
        survivors = [mutant for mutant, survives in zip(chosen, pool.map(attempt, chosen)) if survives]
    print(f"{len(survivors)} of {len(chosen)} survive" + "".join(f"\n  {m.name} ({m.file})" for m in survivors))
    return int(len(survivors) > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
