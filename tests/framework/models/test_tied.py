"""Models that compute logits from their embeddings, and checkpoints that have weights for them all the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from framework.config import ModelConfig
from framework.quantize.source import Source
from tests.models.examples import EXAMPLES

from .checkpoints import Example, make
from .harness import build, error, model_config, reference, sequences, teacher_forced


def is_right(folder: Path, example: Example, theirs: Any, **changes: Any) -> bool:
    """Whether logits are those of transformers. changes: of config.json's fields."""
    config = model_config(folder, example)
    config = replace(config, architecture={**config.architecture, **changes})
    ours = teacher_forced(build(config), sequences((12,)), None, num_decodes=2)[0]
    return error(ours, reference(theirs, sequences((12,))[0])) <= 1e-4


def with_tied(name: str, tied: bool) -> Example:
    return replace(EXAMPLES[name], config={**EXAMPLES[name].config, "tie_word_embeddings": tied})


@pytest.mark.parametrize("name", ["phi", "gptj"])
def test_logits_with_a_bias(name: str, tmp_path: Path) -> None:
    theirs = make(with_tied(name, True), tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in stored and float(stored["lm_head.bias"].abs().max()) > 0.1
    assert is_right(tmp_path, with_tied(name, True), theirs)


@pytest.mark.parametrize("name", ["llama", "gpt-neox"])
def test_other_weights_are_not_passed_over(name: str, tmp_path: Path) -> None:
    """As where a model was trained untied and its config.json says nothing of it. The library takes the weights, and warns."""
    theirs = make(with_tied(name, False), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tie_word_embeddings": True}))
    library = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert error(reference(library, sequences((12,))[0]), reference(theirs, sequences((12,))[0])) <= 1e-4
    head = {"llama": "lm_head", "gpt-neox": "embed_out"}[name]
    message = rf"has {head}\.weight, which differs from .*embed.*=true.*set tie_word_embeddings=false there"
    with pytest.raises(ValueError, match=message):
        build(ModelConfig(str(tmp_path)))
    with pytest.raises(ValueError, match=message):
        Source(str(tmp_path))
    assert is_right(tmp_path, EXAMPLES[name], theirs, tie_word_embeddings=False)


def test_one_row_makes_them_others(tmp_path: Path) -> None:
    large = with_tied("llama", False)
    theirs = make(replace(large, config={**large.config, "vocab_size": 8200}), tmp_path)
    for row in (0, 4096, 8199):
        with torch.no_grad():
            theirs.lm_head.weight.copy_(theirs.model.embed_tokens.weight)
            theirs.lm_head.weight[row, -1] += 1
        theirs.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"which differs from model\.embed_tokens\.weight"):
            build(ModelConfig(str(tmp_path), architecture={"tie_word_embeddings": True}))


def test_more_rows_make_them_others(tmp_path: Path) -> None:
    """What to do is said of them, too; of a table of embeddings that does not fit it is said that it does not."""
    make(with_tied("llama", True), tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    table = tensors["model.embed_tokens.weight"]
    more = torch.cat([table, torch.zeros(5, table.shape[1])])
    save_file({**tensors, "lm_head.weight": more}, path)
    with pytest.raises(ValueError, match=r"which differs from model\.embed_tokens\.weight.* or, .* delete lm_head\.weight"):
        build(ModelConfig(str(tmp_path)))
    save_file({**tensors, "lm_head.weight": more, "model.embed_tokens.weight": more.clone()}, path)
    with pytest.raises(ValueError, match=r"tensor model\.embed_tokens\.weight has shape"):
        build(ModelConfig(str(tmp_path)))


def test_the_same_weights_once_more(tmp_path: Path) -> None:
    """As files of torch.save have them."""
    example = with_tied("llama", True)
    theirs = make(example, tmp_path)
    tensors = theirs.state_dict()
    assert torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert is_right(tmp_path, example, theirs)


def test_the_same_weights_in_another_dtype(tmp_path: Path) -> None:
    """What a model of that dtype would read of either is the same."""
    make(with_tied("llama", True), tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    table = tensors["model.embed_tokens.weight"]
    save_file({**tensors, "lm_head.weight": table, "model.embed_tokens.weight": table.bfloat16()}, path)
    build(ModelConfig(str(tmp_path), dtype="bfloat16"))
    with pytest.raises(ValueError, match="which differs from"):
        build(ModelConfig(str(tmp_path), dtype="float32"))
