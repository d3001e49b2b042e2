"""Encoders against transformers and numpy: embeddings, classes, pairs of texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from framework import LLM, PoolingParams
from framework.config import CacheConfig
from framework.engine.prompts import EngineInput

from .checkpoints import PROMPTS, REFERENCE, VOCAB, assert_same_direction, build, embeddings, encoded, save, states, tokens

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
    "pad_token_id": 0,
}
BEHIND = {**SIZES, "max_position_embeddings": 98, "pad_token_id": 1, "type_vocab_size": 1}
MODERN = {**SIZES, "local_attention": 16, "norm_bias": True, "attention_bias": True, "mlp_bias": True}
SPECIAL = {"bos_token_id": None, "eos_token_id": None, "cls_token_id": None, "sep_token_id": None}
DISTIL = {"vocab_size": VOCAB, "dim": 64, "n_layers": 3, "n_heads": 4, "hidden_dim": 96, "max_position_embeddings": 96}
GEMMA = {**SIZES, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 16, "use_bidirectional_attention": True}
FAMILIES: dict[str, Callable[..., Any]] = {
    "Bert": lambda **more: transformers.BertConfig(**SIZES, **more),
    "Roberta": lambda **more: transformers.RobertaConfig(**BEHIND, **more),
    "XLMRoberta": lambda **more: transformers.XLMRobertaConfig(**BEHIND, **more),
    "DistilBert": lambda **more: transformers.DistilBertConfig(**DISTIL, **more),
    "ModernBert": lambda **more: transformers.ModernBertConfig(**{**MODERN, **SPECIAL, **more}),
}


def engine(folder: Path, kernels: dict[str, str] | None = None, **given: Any) -> LLM:
    return build(folder, kernels, **{"max_num_batched_tokens": 200, **given})


@pytest.mark.parametrize("kind", ["CLS", "MEAN", "LAST", "ALL"])
@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_are_those_of_transformers(tmp_path: Path, family: str, kind: str) -> None:
    model = save(tmp_path, f"{family}Model", FAMILIES[family]())
    pooled = {"LAST": lambda x: x[-1], "CLS": lambda x: x[0], "MEAN": lambda x: x.mean(0), "ALL": lambda x: x}[kind]
    for vector, expected in zip(encoded(engine(tmp_path, pooler={"pooling_type": kind})), states(model)):
        assert_same_direction(vector, pooled(expected))


def test_what_a_modernbert_has_not_is_not_asked_for(tmp_path: Path) -> None:
    """Without biases, and with windows and thetas by the names of the first checkpoints."""
    older = {"global_rope_theta": 1000.0, "local_rope_theta": 50.0, "global_attn_every_n_layers": 2, "num_hidden_layers": 4}
    model = save(tmp_path, "ModernBertModel", transformers.ModernBertConfig(**{**SIZES, **SPECIAL, "local_attention": 16, **older}))
    expected = [x[0] for x in states(model)]
    found = embeddings(engine(tmp_path))
    overridden = {"architecture": {"rope_parameters": None, "layer_types": None, **older}}
    for vector, by_older_names, wanted in zip(found, embeddings(engine(tmp_path, **overridden)), expected):
        assert_same_direction(vector, wanted)
        assert np.array_equal(vector, by_older_names)


def test_a_gemma_that_sees_what_comes_after(tmp_path: Path) -> None:
    """EmbeddingGemma: a window of both sides, which the library halves once more whenever it reads a config."""
    config = transformers.Gemma3TextConfig(**GEMMA, layer_types=["sliding_attention", "full_attention", "sliding_attention"])
    model = save(tmp_path, "Gemma3TextModel", config)
    assert config.sliding_window == 9
    llm = engine(tmp_path, pooler={"pooling_type": "MEAN"}, architecture={"sliding_window": 16})
    for vector, expected in zip(embeddings(llm), states(model)):
        assert_same_direction(vector, expected.mean(0))


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_classes(tmp_path: Path, family: str, classes: int) -> None:
    model = save(tmp_path, f"{family}ForSequenceClassification", FAMILIES[family](num_labels=classes))
    with torch.inference_mode():
        logits = [model(torch.tensor([prompt])).logits[0].double() for prompt in PROMPTS]
    for output, expected in zip(engine(tmp_path).classify(tokens(), use_tqdm=False), logits):
        probs = expected.sigmoid() if classes == 1 else expected.softmax(-1)
        np.testing.assert_allclose(output.outputs.probs, probs, atol=1e-5)


def test_a_modernbert_that_classifies_by_the_mean(tmp_path: Path) -> None:
    config = FAMILIES["ModernBert"](num_labels=4, classifier_pooling="mean", classifier_bias=True)
    model = save(tmp_path, "ModernBertForSequenceClassification", config)
    with torch.inference_mode():
        logits = [model(torch.tensor([prompt])).logits[0].double().softmax(-1) for prompt in PROMPTS]
    for output, expected in zip(engine(tmp_path).classify(tokens(), use_tqdm=False), logits):
        np.testing.assert_allclose(output.outputs.probs, expected, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_classes_of_every_token(tmp_path: Path, family: str) -> None:
    model = save(tmp_path, f"{family}ForTokenClassification", FAMILIES[family](num_labels=5))
    with torch.inference_mode():
        logits = [model(torch.tensor([prompt])).logits[0].double().softmax(-1) for prompt in PROMPTS]
    for found, expected in zip(encoded(engine(tmp_path)), logits):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_second_text_of_a_pair_has_tokens_of_its_own_type(tmp_path: Path) -> None:
    model = save(tmp_path, "BertForSequenceClassification", FAMILIES["Bert"](num_labels=1))
    llm = engine(tmp_path)
    pairs = [(prompt, len(prompt) // 2) for prompt in PROMPTS]
    params = []
    for prompt, second in pairs:
        own = PoolingParams()
        own.second_text = second if len(prompt) != 17 else None  # one that is no pair, among them
        params.append(own)
    found = llm.classify(tokens(), pooling_params=params, use_tqdm=False)
    for output, (prompt, second) in zip(found, pairs):
        types = [int(i >= second and len(prompt) != 17) for i in range(len(prompt))]
        with torch.inference_mode():
            expected = model(torch.tensor([prompt]), token_type_ids=torch.tensor([types])).logits[0].double().sigmoid()
        np.testing.assert_allclose(output.outputs.probs, expected, atol=1e-5)


@pytest.mark.parametrize("family", ["Bert", "ModernBert"])
def test_nothing_depends_on_what_happens_around_a_request(tmp_path: Path, family: str) -> None:
    """With reference kernels equal to the bit: batch, blocks, steps in flight, and what else the cache holds."""
    save(tmp_path, f"{family}Model", FAMILIES[family]())
    for kind in ("MEAN", "CLS"):
        given = {"pooler": {"pooling_type": kind}}
        alone = embeddings(engine(tmp_path, REFERENCE, max_num_seqs=1, **given))
        tight = CacheConfig(num_blocks=40, block_size=4, check_invariants=True)
        llm = engine(tmp_path, REFERENCE, cache=tight, in_flight=2, **given)
        for _ in range(2):
            assert all(np.array_equal(a, b) for a, b in zip(alone, embeddings(llm)))
        stats = llm.engine.stats()
        assert stats.num_cached_prompt_tokens == stats.num_chunked_prefills == 0 and llm.engine.manager.pool.num_free == 39


def test_prompts_that_cannot_be_and_the_engine_goes_on(tmp_path: Path) -> None:
    save(tmp_path, "BertModel", FAMILIES["Bert"]())
    llm = engine(tmp_path, max_num_batched_tokens=40)
    for given in ([PROMPTS[4]], PROMPTS):
        with pytest.raises(ValueError, match="96 tokens, but this model sees all of a prompt at once, and a step takes 40"):
            embeddings(llm, given)
    with pytest.raises(ValueError, match="97 tokens, but the model takes at most 96"):
        embeddings(llm, [[5] * 97])
    assert len(embeddings(llm, PROMPTS[:2])) == 2
    assert len(llm.embed([EngineInput(PROMPTS[1])], use_tqdm=False)) == 1
    with pytest.raises(ValueError, match="tokens see those after them, so that it can only pool"):
        engine(tmp_path, runner="generate")
    with pytest.raises(ValueError, match="made to be a decoder"):
        engine(tmp_path, architecture={"is_decoder": True})
    with pytest.raises(ValueError, match="no tokens to guess"):
        LLM(str(tmp_path), skip_tokenizer_init=True, speculative_config={"method": "ngram", "num_speculative_tokens": 2})


def test_first_checkpoints_of_bert(tmp_path: Path) -> None:
    """Their norms have gamma and beta, and there is a head for masked tokens."""
    from safetensors.torch import load_file, save_file

    model = save(tmp_path, "BertForMaskedLM", FAMILIES["Bert"]())
    found = load_file(tmp_path / "model.safetensors")
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in found.items()
    }
    assert renamed.keys() != found.keys()
    save_file(renamed, tmp_path / "model.safetensors")
    for vector, expected in zip(embeddings(engine(tmp_path)), states(model)):
        assert_same_direction(vector, expected[0])
