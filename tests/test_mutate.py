"""Every fault of ``mutants.py`` still applies, and gives code. Whether the tests notice it: ``python tests/mutate.py``."""

from __future__ import annotations

from collections import Counter

import pytest

from .mutants import MUTANTS, TESTS, Mutant
from .mutate import ROOT, plant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_fault_applies_once(mutant: Mutant) -> None:
    source = (ROOT / mutant.file).read_text(encoding="utf-8")
    faulty = plant(source, mutant)
    if mutant.file.endswith(".py"):
        compile(faulty, mutant.file, "exec")
    assert all((ROOT / test.partition("::")[0]).exists() for test in TESTS[mutant.file])


def test_names_are_unique() -> None:
    assert max(Counter(mutant.name for mutant in MUTANTS).values()) == 1 and len(MUTANTS) >= 40
