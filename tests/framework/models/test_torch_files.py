"""Checkpoints in files of torch.save, and where checkpoints are downloaded from."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from framework.config import ModelConfig
from framework.models.hub import resolve_model

from .checkpoints import EXAMPLES, make
from .harness import build, error, model_config, reference, sequences, teacher_forced

INDEX = "pytorch_model.bin.index.json"


def to_torch_files(folder: Path, num_shards: int, zipped: bool = True) -> None:
    """Rewrites a checkpoint as torch.save did it, in shards with an index if there are several."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if num_shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        return
    names = sorted(tensors)
    where = {name: f"pytorch_model-{i % num_shards + 1:05d}-of-{num_shards:05d}.bin" for i, name in enumerate(names)}
    for file in set(where.values()):
        shard = {name: tensors[name] for name in names if where[name] == file}
        torch.save(shard, folder / file, _use_new_zipfile_serialization=zipped)
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))


@pytest.mark.parametrize(("name", "num_shards", "zipped"), [("opt", 1, True), ("gpt2", 3, True), ("llama", 1, False)])
def test_logits(name: str, num_shards: int, zipped: bool, tmp_path: Path) -> None:
    theirs = make(EXAMPLES[name], tmp_path)
    to_torch_files(tmp_path, num_shards, zipped)
    ours = teacher_forced(build(model_config(tmp_path, EXAMPLES[name])), sequences((12,)), None, num_decodes=2)[0]
    assert error(ours, reference(theirs, sequences((12,))[0])) <= 1e-4


def test_empty_files_are_named(tmp_path: Path) -> None:
    make(EXAMPLES["llama"], tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match=r"pytorch_model.bin cannot be read as tensors alone \(EOFError\)"):
        build(model_config(tmp_path, EXAMPLES["llama"]))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_files_that_are_cut_off_are_named(share: float, zipped: bool, tmp_path: Path) -> None:
    make(EXAMPLES["llama"], tmp_path)
    to_torch_files(tmp_path, 1, zipped)
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(ValueError, match=r"pytorch_model.bin cannot be read as tensors alone"):
        build(model_config(tmp_path, EXAMPLES["llama"]))


@pytest.mark.parametrize("other", [torch.ones(64).to_sparse(), torch.ones(64, device="meta"), [torch.ones(64)], 3])
def test_what_is_no_dense_tensor_is_refused(other: Any, tmp_path: Path) -> None:
    make(EXAMPLES["llama"], tmp_path)
    tensors: dict[str, Any] = {**load_file(tmp_path / "model.safetensors"), "model.norm.weight": other}
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin holds dict, but dense tensors by name are expected"):
        build(model_config(tmp_path, EXAMPLES["llama"]))


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pwned",)


def test_code_is_refused_and_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(EXAMPLES["llama"], tmp_path)
    tensors: dict[str, Any] = {**load_file(tmp_path / "model.safetensors"), "extra": Hostile()}
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"pytorch_model.bin cannot be read as tensors alone"):
        build(ModelConfig(str(tmp_path)))
    assert not (tmp_path / "pwned").exists()


class Hub:
    """A stand-in for a hub that has ``files``."""

    def __init__(self, folder: Path, *files: str) -> None:
        self.folder, self.files, self.fetched = folder, files, list[str]()

    def snapshot_download(self, name: str, *, allow_patterns: list[str], local_files_only: bool, **options: Any) -> str:
        if local_files_only:
            raise OSError("not in the cache")
        for file in self.files:
            if any(Path(file).match(pattern) for pattern in allow_patterns):
                (self.folder / file).write_text("{}")
                self.fetched.append(file)
        return str(self.folder)


def test_files_of_torch_are_downloaded_only_where_there_are_no_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for others, expected in ((["model.safetensors"], "model.safetensors"), ([], "pytorch_model.bin")):
        folder = tmp_path / expected
        folder.mkdir()
        hub = Hub(folder, "config.json", "pytorch_model.bin", *others)
        monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
        assert resolve_model("some/model") == folder
        assert {file for file in hub.fetched if file != "config.json"} == {expected}
        assert (folder / expected).is_file()


def test_modelscope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "True")
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(ValueError, match=r"pip install 'kernelswap\[modelscope\]'"):
        resolve_model("some/model")
    hub, module = Hub(tmp_path, "config.json", "model.safetensors"), ModuleType("modelscope.hub.snapshot_download")
    module.snapshot_download = hub.snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modelscope", ModuleType("modelscope"))
    monkeypatch.setitem(sys.modules, "modelscope.hub", ModuleType("modelscope.hub"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert resolve_model("some/model") == tmp_path and hub.fetched == ["config.json", "model.safetensors"]
    assert (resolve_model("tiny") / "config.json").is_file()
