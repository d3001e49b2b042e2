"""Families from outside the tree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from .checkpoints import EXAMPLES, make
from .harness import error, reference, sequences
from .test_loading import edit, rename

ROOT = Path(__file__).parents[3]
REPORT = """
import json, sys, torch
from framework.models.plugins import family_names, find_family
from tests.framework.models.harness import build, sequences, teacher_forced
from framework.config import ModelConfig
def refused(name):
    try:
        find_family(name)
    except ValueError as error:
        return str(error)
logits = teacher_forced(build(ModelConfig(sys.argv[1], dtype="float32")), sequences((12,)), None, num_decodes=2)[0]
print(json.dumps({"names": family_names()[-2:], "lost": refused("lost"), "none": find_family("nobody"), "logits": logits.tolist()}))
"""


def test_an_installed_package_adds_a_family(tmp_path: Path) -> None:
    theirs = make(EXAMPLES["llama"], tmp_path / "model")
    expected = reference(theirs, sequences((12,))[0])
    for layer in range(len(theirs.model.layers)):
        rename(tmp_path / "model", f"model.layers.{layer}.", f"model.blocks.{layer}.")
    edit(tmp_path / "model", model_type="backwards_llama")
    source = shutil.copytree(ROOT / "tests" / "plugins" / "kernelswap_family", tmp_path / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target"]
    subprocess.run([*pip, str(tmp_path / "site"), str(source)], check=True, timeout=120)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(ROOT)])}
    command = [sys.executable, "-c", REPORT, str(tmp_path / "model")]
    found = json.loads(subprocess.run(command, env=env, check=True, capture_output=True, text=True, timeout=240).stdout)
    assert found["names"] == ["backwards_llama", "lost"] and found["none"] is None
    assert "'lost' comes from a_library_that_is_not_installed:FAMILY, which could not be loaded" in found["lost"]
    assert error(torch.tensor(found["logits"]), expected) <= 1e-4
