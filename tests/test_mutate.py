"""Every fault of ``mutants.py`` still applies, and gives code. Whether the tests notice it: ``python tests/mutate.py``."""

from __future__ import annotations

import ast
from collections import Counter

import pytest

from . import mutants
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


def test_a_file_has_one_list_of_tests() -> None:
    """Of two in the table the last would count, and the first be passed over."""
    tree = ast.parse((ROOT / "tests" / "mutants.py").read_text(encoding="utf-8"))
    table = next(node.value for node in tree.body if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "TESTS")
    assert isinstance(table, ast.Dict)
    files: list[str] = []
    for key, value in zip(table.keys, table.values):
        found = eval(ast.unparse(key or value), vars(mutants))
        files += [found] if key else found
    assert [file for file, count in Counter(files).items() if count > 1] == [] and set(files) == set(TESTS)
