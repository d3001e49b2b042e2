"""Which way imports point: walks the syntax trees of both packages and of the experiments. Rules are about folders."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [p for top in ("framework", "triton_kernels", "experiments") for p in sorted((ROOT / top).rglob("*.py"))]


@dataclass(frozen=True)
class Rule:
    """Files below ``place`` (those below ``but`` aside) import nothing of ``forbidden``, dotted prefixes. ``deferred``: inside
    functions they may."""

    place: str
    forbidden: tuple[str, ...]
    but: tuple[str, ...] = ()
    deferred: bool = False

    def violations(self, path: Path) -> list[str]:
        name = name_of(path)
        if not name.startswith(self.place) or name.startswith(self.but):
            return []
        return [
            f"{name}:{line} imports {module}, which is forbidden below {self.place or 'the root'}"
            for line, module in imports(path, top_level_only=self.deferred)
            if any(module == prefix or module.startswith(prefix + ".") for prefix in self.forbidden)
        ]


DRAWING = tuple(
    f"framework/study/{name}.py" for name in ("drawing", "plots", "sweep_plots", "kernel_plots", "report_page", "report_writing")
)
RULES = (
    Rule("triton_kernels/", ("framework", "experiments", "hydra", "omegaconf", "transformers", "pandas")),
    Rule("triton_kernels/", ("triton_kernels.lab",), but=("triton_kernels/lab/",)),
    Rule("framework/", ("experiments",)),
    Rule("framework/", ("triton_kernels", "triton"), but=("framework/plan.py", "framework/cli/", "framework/models/quantization/")),
    Rule("framework/plan.py", ("triton_kernels.lab",)),
    Rule("framework/cli/", ("triton_kernels",), deferred=True),
    # Planes. The engine and what has no device need no torch; the engine knows nobody who works for it.
    Rule("framework/engine/", ("torch", *(f"framework.{plane}" for plane in ("worker", "models", "executor", "study", "server")))),
    Rule(
        "framework/speculation/",
        ("torch", *(f"framework.{plane}" for plane in ("worker", "models", "executor", "study", "server"))),
    ),
    Rule("framework/executor/", ("torch",), deferred=True),
    Rule("framework/executor/", ("framework.worker", "framework.study", "framework.server")),
    Rule("framework/distributed/", ("torch", "framework.worker"), deferred=True),
    Rule("framework/distributed/", ("framework.study", "framework.server", "framework.executor")),
    Rule("framework/study/", ("torch",), deferred=True),
    Rule("framework/study/", ("framework.worker", "framework.models", "framework.server")),
    Rule("framework/worker/", ("framework.study", "framework.server", "framework.executor")),
    Rule("framework/models/", ("framework.worker", "framework.executor", "framework.study", "framework.server")),
    Rule("framework/quantize/", tuple(f"framework.{plane}" for plane in ("engine", "executor", "worker", "study", "server"))),
    Rule("framework/cli/", ("torch",), deferred=True),
    # What puts the planes together is known to none of them.
    *(
        Rule(f"framework/{plane}/", ("framework.build", "framework.llm", "framework.async_engine", "framework.cli"))
        for plane in ("engine", "executor", "worker", "distributed", "models", "study", "quantize")
    ),
    *(Rule(f"framework/{plane}/", ("framework.quantize",)) for plane in ("engine", "executor", "worker", "models", "study")),
    # Of the files at the top only the plan has tensors.
    *(
        Rule(f"framework/{path.name}", ("torch", "framework.worker", "framework.study"), deferred=True)
        for path in sorted((ROOT / "framework").glob("*.py"))
        if path.name != "plan.py"
    ),
    Rule("", ("hydra", "omegaconf"), but=("framework/study/compose.py", "experiments/")),
    Rule("", ("pandas", "matplotlib"), but=("framework/study/", "experiments/")),
    # Whoever draws imports what draws; the rest of a study must start without it.
    Rule("framework/study/", ("pandas", "matplotlib"), but=DRAWING, deferred=True),
)


def imports(path: Path, *, top_level_only: bool = False, everything: bool = False) -> Iterator[tuple[int, str]]:
    """(line, absolute module name) of every import; those for type checking only are skipped unless ``everything`` is asked for,
    functions' on request. Of ``from package import name`` both the package and package.name are given: the name may be a module."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]

    def visit(node: ast.AST) -> Iterator[tuple[int, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((child.lineno, alias.name) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) - child.level + 1] if child.level else ()
                module = ".".join([*base, *([child.module] if child.module else [])])
                yield child.lineno, module
                yield from ((child.lineno, f"{module}.{alias.name}") for alias in child.names)
            elif not (
                (not everything and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
                or (top_level_only and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))
            ):
                yield from visit(child)

    yield from visit(ast.parse(path.read_text()))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    return name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_the_right_way(path: Path) -> None:
    found = [violation for rule in RULES for violation in rule.violations(path)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_inside_a_package_are_relative(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    if package == "experiments":
        return  # scripts, run by path
    absolute = [
        f"{name_of(path)}:{node.lineno}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == package
    ]
    if package == "framework" or "impls" not in path.parts:
        assert not absolute, absolute


def test_every_rule_is_about_something() -> None:
    assert all(any(name_of(path).startswith(rule.place) for path in FILES) for rule in RULES)


LIGHT = tuple(f"framework/{plane}/" for plane in ("engine", "executor", "distributed", "speculation", "study"))


def test_light_modules_import_without_torch() -> None:
    light = [path for path in FILES if name_of(path).startswith(LIGHT)]
    names = ["framework", "framework.config", "framework.llm", "framework.cli", *map(module_of, light)]
    code = f"import sys, {', '.join(names)}; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_no_circles() -> None:
    """Not even by imports inside functions or for type checking."""
    known = {module_of(path) for path in FILES}
    modules = [path for path in FILES if path.name != "__init__.py"]  # a package that exports its modules is no circle
    graph = {module_of(p): {module for _, module in imports(p, everything=True)} & known - {module_of(p)} for p in modules}
    TopologicalSorter(graph).prepare()  # raises CycleError
