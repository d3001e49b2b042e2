"""A built wheel holds all that the code reads; an editable install would hide a file that moved out of pyproject's sight."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILT_FROM = ("framework", "triton_kernels", "experiments", "pyproject.toml", "README.md", "LICENSE")

USE = """
import sys
import framework, triton_kernels
from framework.models.hub import EMBEDDED, resolve_model
from triton_kernels.lab.gates import load_rules
from triton_kernels.registry import Registry

wheel = sys.argv[1]
assert framework.__file__.startswith(wheel) and triton_kernels.__file__.startswith(wheel), framework.__file__
for name in EMBEDDED:
    folder = resolve_model(name)
    assert str(folder).startswith(wheel) and (folder / "model.safetensors").is_file(), folder
assert load_rules()
registry = Registry.load([])
assert {"linear", "sample"} <= set(registry.ops) and not registry.failures, registry.failures
"""


def tracked(*folders: str) -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("needs git to say which files belong to the project")
    listed = subprocess.run(["git", "ls-files", "-z", *folders], cwd=ROOT, check=True, capture_output=True, text=True)
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel of the files that git tracks, built without a network."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in tracked(*BUILT_FROM):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(out), str(source)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (file,) = out.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(out)
    return out


def test_a_wheel_holds_every_tracked_file(wheel: Path) -> None:
    names = tracked("framework", "triton_kernels")
    for some in ("gates.json", "native_step.c", "tiny/model.safetensors", "tiny/tokenizer.json"):
        assert any(name.endswith(some) for name in names)
    missing = [name for name in names if not (wheel / name).is_file()]
    assert not missing, f"add them to tool.setuptools.package-data in pyproject.toml: {missing}"


def test_a_wheel_works_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    subprocess.run([sys.executable, "-c", USE, str(wheel)], cwd=tmp_path, env=environment, check=True)
