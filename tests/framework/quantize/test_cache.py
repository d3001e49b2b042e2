"""What processes leave of each other's checkpoints: those that are killed, and those that make the same one at once."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from framework.config import QuantConfig
from framework.quantize import cache, cached_checkpoint, quantize_checkpoint

from .small_models import make_model, quant

STUCK = """
import sys, time
from pathlib import Path
from framework.config import QuantConfig
from framework.quantize import cache, cached_checkpoint, quantize_checkpoint
from framework.quantize.output import ShardWriter

def stuck(*arguments):
    print("writing", flush=True)
    time.sleep(600)

ShardWriter.add = stuck
"""


@contextmanager
def stuck(call: str) -> Iterator[subprocess.Popen[str]]:
    """A process that stops in the middle of writing a checkpoint."""
    with subprocess.Popen([sys.executable, "-c", STUCK + call], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "writing\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    make_model("llama", tmp_path / "model")
    return tmp_path / "model"


def test_what_a_killed_process_leaves_is_removed_and_nothing_of_a_living_one(model: Path) -> None:
    parent = model.parent / "written"
    call = f"quantize_checkpoint({str(model)!r}, Path({str(parent / 'out')!r}), QuantConfig('int8'), progress=False)"
    with stuck(call):
        (unfinished,) = parent.iterdir()
        (own := parent / ".out-unfinished-mine").mkdir()
        quantize_checkpoint(str(model), parent / "second", quant("int8"), progress=False)
        assert set(parent.iterdir()) == {unfinished, own, parent / "second"}
    quantize_checkpoint(str(model), parent / "out", quant("int8"), progress=False)
    assert set(parent.iterdir()) == {own, parent / "second", parent / "out"}


def test_one_process_makes_a_checkpoint_and_if_it_is_killed_the_next(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, found = model.parent / "cache", []
    monkeypatch.setattr(cache, "CACHE", folder)
    call = f"cache.CACHE = Path({str(folder)!r}); cached_checkpoint({str(model)!r}, QuantConfig('int8'))"
    waiting = threading.Thread(target=lambda: found.append(cached_checkpoint(str(model), QuantConfig("int8"))))
    with stuck(call) as first:
        waiting.start()
        waiting.join(timeout=1)
        assert waiting.is_alive() and len([path for path in folder.iterdir() if path.is_dir()]) == 1
        first.kill()
        waiting.join(timeout=60)
    assert list(folder.iterdir()) == found
    with safe_open(found[0] / "model.safetensors", "pt") as tensors:
        assert tensors.get_tensor("model.layers.0.mlp.down_proj.weight").dtype == torch.int8
