"""Which way imports point: walks the syntax trees of both packages and of the experiments."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [p for top in ("framework", "triton_kernels", "experiments") for p in sorted((ROOT / top).rglob("*.py"))]
NO_TORCH = (
    "request", "scheduler", "policies", "step", "clock", "config", "metrics", "results", "sampling_params", "workload",
    "kv_cache", "cli",
)  # fmt: skip
DOORS_TO_KERNELS = ("framework/plan.py", "framework/cli/", "framework/quantization/")
HYDRA_EDGE = ("framework/compose.py", "experiments/")
PLOTTING = ("framework/results.py", "framework/plots.py")


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[tuple[int, str]]:
    """(line, absolute module name) of every import; imports for type checking only are skipped, functions' on request."""
    module = path.relative_to(ROOT).with_suffix("").parts
    package = module[:-1]

    def visit(node: ast.AST) -> Iterator[tuple[int, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((child.lineno, alias.name) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) - child.level + 1] if child.level else ()
                yield child.lineno, ".".join([*base, *([child.module] if child.module else [])])
            elif not (
                (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
                or (top_level_only and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))
            ):
                yield from visit(child)

    yield from visit(ast.parse(path.read_text()))


def violations(path: Path, forbidden: tuple[str, ...], **options: bool) -> list[str]:
    found = imports(path, **options)
    return [f"{path.relative_to(ROOT)}:{line} imports {name}" for line, name in found if name.split(".")[0] in forbidden]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def below(path: Path, places: tuple[str, ...]) -> bool:
    return name_of(path).startswith(places)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_the_right_way(path: Path) -> None:
    found: list[str] = []
    if below(path, ("triton_kernels/",)):
        found += violations(path, ("framework", "experiments", "hydra", "omegaconf", "transformers", "pandas"))
    if below(path, ("framework/",)):
        found += violations(path, ("experiments",))
        if not below(path, DOORS_TO_KERNELS):
            found += violations(path, ("triton_kernels", "triton"))
    if below(path, ("framework/cli/",)):
        found += violations(path, ("triton_kernels",), top_level_only=True)
    if not below(path, HYDRA_EDGE):
        found += violations(path, ("hydra", "omegaconf"))
    if not below(path, (*PLOTTING, "experiments/")):
        found += violations(path, ("pandas", "matplotlib"))
    if below(path, ("framework/",)) and path.relative_to(ROOT / "framework").with_suffix("").parts[0] in NO_TORCH:
        found += violations(path, ("torch",), top_level_only=True)
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


def test_light_modules_import_without_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys; import framework, framework.config, framework.scheduler, framework.sampling_params, framework.metrics,"
        "framework.results, framework.cli, framework.kv_cache.manager; assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
