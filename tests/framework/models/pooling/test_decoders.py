"""Decoders that pool, against transformers and numpy: embeddings, classes, rewards, and scores from two tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from framework import LLM, EngineConfig, PoolingParams, SamplingParams
from framework.config import CacheConfig, ModelConfig
from framework.models.read import read_model
from framework.worker.teacher_forcing import TeacherForcing

from .checkpoints import DECODER, PROMPTS, REFERENCE, VOCAB, assert_same_direction, build, embeddings, encoded, save, states, tokens


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, transformers.PreTrainedModel]:
    folder = tmp_path_factory.mktemp("qwen3")
    return folder, save(folder, "Qwen3ForCausalLM", transformers.Qwen3Config(**DECODER))


POOLED: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "LAST": lambda x: x[-1],
    "CLS": lambda x: x[0],
    "MEAN": lambda x: x.mean(0),
    "ALL": lambda x: x,
}


@pytest.mark.parametrize("kind", POOLED)
def test_embeddings_are_those_of_transformers(qwen: tuple[Path, transformers.PreTrainedModel], kind: str) -> None:
    folder, model = qwen
    llm = build(folder, runner="pooling", pooler={"pooling_type": kind})
    found = encoded(llm) if kind == "ALL" else embeddings(llm)
    for vector, expected in zip(found, states(model)):
        assert_same_direction(vector, POOLED[kind](expected))
    assert llm.engine.stats().num_chunked_prefills  # or nothing was shown about prompts that come in parts


def test_without_activation_a_state_comes_as_it_is(qwen: tuple[Path, transformers.PreTrainedModel]) -> None:
    folder, model = qwen
    llm = build(folder, convert="embed")
    for vector, expected in zip(embeddings(llm, pooling_params=PoolingParams(use_activation=False)), states(model)):
        np.testing.assert_allclose(vector, expected[-1], rtol=1e-4, atol=1e-5)
    for vector, expected in zip(encoded(llm, pooling_task="token_embed"), states(model)):
        assert_same_direction(vector, expected)


@pytest.mark.parametrize("kind", POOLED)
def test_nothing_depends_on_what_happens_around_a_request(qwen: tuple[Path, transformers.PreTrainedModel], kind: str) -> None:
    """Batch, chunks, blocks, preemption, prefix cache, steps in flight: with reference kernels equal to the bit."""
    folder, _ = qwen
    shared = [PROMPTS[4][:50] + prompt[:40] for prompt in PROMPTS]

    def run(llm: LLM) -> list[np.ndarray]:
        return [x for prompts in (PROMPTS, shared) for x in encoded(llm, prompts)]

    given = {"runner": "pooling", "pooler": {"pooling_type": kind}}
    uncached = CacheConfig(prefix_caching=False)
    alone = run(build(folder, REFERENCE, max_num_batched_tokens=96, max_num_seqs=1, cache=uncached, **given))
    tight = CacheConfig(num_blocks=32, block_size=4, check_invariants=True)
    for in_flight, chunk in ((1, 0), (2, 5)):
        llm = build(folder, REFERENCE, cache=tight, in_flight=in_flight, max_chunk_tokens=chunk, **given)
        assert all(np.array_equal(a, b) for a, b in zip(alone, run(llm), strict=True))
        stats = llm.engine.stats()
        assert bool(stats.num_preemptions) == bool(chunk) and bool(stats.num_cached_prompt_tokens) == (kind == "LAST")
        assert stats.num_output_tokens == 0 and not llm.engine.has_unfinished()
        assert llm.engine.manager.pool.num_free == 31


def test_tokens_of_a_model_that_takes_the_last_do_not_come_from_the_cache(qwen: tuple[Path, transformers.PreTrainedModel]) -> None:
    folder, _ = qwen
    llm = build(folder, runner="pooling")
    first = encoded(llm, PROMPTS[4:5], pooling_task="token_embed")[0]
    again = llm.encode(tokens(PROMPTS[4:5]), pooling_task="token_embed", use_tqdm=False)[0]
    assert again.num_cached_tokens == 0 and np.array_equal(first, again.outputs.data)
    assert llm.encode(tokens(PROMPTS[4:5]), use_tqdm=False)[0].num_cached_tokens == 92


GPT2 = {"vocab_size": VOCAB, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 96}


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "GPT2", "Gemma2"])
@pytest.mark.parametrize("classes", [1, 3])
def test_classes(tmp_path: Path, family: str, classes: int) -> None:
    config = getattr(transformers, f"{family}Config")(
        **{**(GPT2 if family == "GPT2" else DECODER), "num_labels": classes, "pad_token_id": 0}
    )
    model = save(tmp_path, f"{family}ForSequenceClassification", config)
    llm = build(tmp_path)
    with torch.inference_mode():
        logits = [model(torch.tensor([prompt])).logits[0].double() for prompt in PROMPTS]
    found = llm.classify(tokens(), use_tqdm=False)
    for output, expected in zip(found, logits):
        probs = expected.sigmoid() if classes == 1 else expected.softmax(-1)
        assert output.outputs.num_classes == classes
        np.testing.assert_allclose(output.outputs.probs, probs, atol=1e-5)
    raw = llm.classify(tokens(), pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
    for output, expected in zip(raw, logits):
        np.testing.assert_allclose(output.outputs.probs, expected, rtol=1e-4, atol=1e-4)


def test_classes_of_every_token(tmp_path: Path) -> None:
    model = save(tmp_path, "Qwen3ForTokenClassification", transformers.Qwen3Config(**DECODER, num_labels=5))
    with torch.inference_mode():
        logits = [model(torch.tensor([prompt])).logits[0].double().softmax(-1) for prompt in PROMPTS]
    for found, expected in zip(encoded(build(tmp_path)), logits):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_scores_from_two_tokens(tmp_path: Path, tied: bool) -> None:
    config = transformers.Qwen3Config(**{**DECODER, "tie_word_embeddings": tied})
    model = save(tmp_path, "Qwen3ForCausalLM", config)
    no, yes = 17, 42
    answers = {"classifier_from_token": [no, yes], "method": "from_2_way_softmax"}
    llm = build(tmp_path, architecture=answers)
    with torch.inference_mode():
        logits = [model(torch.tensor([prompt])).logits[0, -1].double() for prompt in PROMPTS]
    for output, expected in zip(llm.classify(tokens(), use_tqdm=False), logits):
        np.testing.assert_allclose(output.outputs.probs, expected[[no, yes]].softmax(-1)[1:], atol=1e-5)
    both = build(tmp_path, architecture={"classifier_from_token": [no, yes]})
    for output, expected in zip(both.classify(tokens(), use_tqdm=False), logits):
        np.testing.assert_allclose(output.outputs.probs, expected[[no, yes]].softmax(-1), atol=1e-5)
    if not tied:
        with pytest.raises(ValueError, match="set tie_word_embeddings=false there"):
            build(tmp_path, architecture={**answers, "tie_word_embeddings": True})
        embeddings(build(tmp_path, runner="pooling", architecture={"tie_word_embeddings": True}))  # which have no logits


@pytest.mark.parametrize("kind", ["Qwen2ForRewardModel", "Qwen2ForProcessRewardModel"])
def test_rewards(tmp_path: Path, kind: str) -> None:
    """Heads that transformers has no class for: computed here."""
    given = {name: value for name, value in DECODER.items() if name != "head_dim"}
    model = save(tmp_path, "Qwen2Model", transformers.Qwen2Config(**given))
    classes, step = (1, None) if kind == "Qwen2ForRewardModel" else (2, 8)
    weights = load_file(tmp_path / "model.safetensors")
    head = {"score.0.weight": (64, 64), "score.0.bias": (64,), "score.2.weight": (classes, 64), "score.2.bias": (classes,)}
    w = {name: torch.randn(*shape) * 0.2 for name, shape in head.items()}
    save_file({**{f"model.{name}": tensor for name, tensor in weights.items()}, **w}, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": [kind], "step_tag_id": step}))
    llm, d = build(tmp_path), {name: tensor.double().numpy() for name, tensor in w.items()}
    prompts = [[step or 5, *prompt[:30], step or 5] for prompt in PROMPTS]
    for found, x, prompt in zip(encoded(llm, prompts), states(model, prompts), prompts):
        logits = np.maximum(x @ d["score.0.weight"].T + d["score.0.bias"], 0) @ d["score.2.weight"].T + d["score.2.bias"]
        if step is not None:
            logits = logits[np.array(prompt) == step]
            logits = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-5)
    if step is not None:
        one = encoded(llm, prompts, pooling_params=PoolingParams(returned_token_ids=[1]))
        assert all(np.array_equal(a[:, 1:], b) or b.shape[1] == 1 for a, b in zip(encoded(llm, prompts), one))


def test_dimensions(qwen: tuple[Path, transformers.PreTrainedModel]) -> None:
    folder, model = qwen
    llm = build(folder, runner="pooling", architecture={"matryoshka_dimensions": [16, 64]})
    found = embeddings(llm, pooling_params=[PoolingParams(dimensions=16 if i % 2 else None) for i in range(len(PROMPTS))])
    for i, (vector, expected) in enumerate(zip(found, states(model))):
        assert_same_direction(vector, expected[-1, : 16 if i % 2 else 64])
    with pytest.raises(ValueError, match=r"dimensions=32 cannot work: it must be one of 16, 64"):
        embeddings(llm, pooling_params=PoolingParams(dimensions=32))
    any_size = build(folder, runner="pooling", architecture={"is_matryoshka": True})
    assert len(embeddings(any_size, PROMPTS[:1], pooling_params=PoolingParams(dimensions=7))[0]) == 7
    with pytest.raises(ValueError, match="dimensions=65 cannot work: the model's embeddings have 64"):
        embeddings(any_size, pooling_params=PoolingParams(dimensions=65))
    with pytest.raises(ValueError, match="were not made to be cut"):
        embeddings(build(folder, runner="pooling"), pooling_params=PoolingParams(dimensions=16))
    with pytest.raises(ValueError, match="dimensions=0 cannot work"):
        PoolingParams(dimensions=0)


def test_a_model_does_what_it_was_built_for_and_goes_on(qwen: tuple[Path, transformers.PreTrainedModel]) -> None:
    folder, _ = qwen
    pooling, generating = build(folder, runner="pooling"), build(folder)
    for params in (None, SamplingParams(max_tokens=3), PoolingParams()):
        with pytest.raises(ValueError, match="pools and generates nothing: use embed"):
            pooling.generate(tokens(), params, use_tqdm=False)  # type: ignore[arg-type]
    for method in (generating.embed, generating.classify, generating.encode):
        with pytest.raises(ValueError, match="build it with runner='pooling'"):
            method(tokens())
    with pytest.raises(ValueError, match="build it with runner='pooling'"):
        generating.engine.add_request("a", [1, 2], PoolingParams())
    with pytest.raises(ValueError, match="task='classify' cannot work: this model does embed, token_embed"):
        pooling.classify(tokens())
    with pytest.raises(ValueError, match="97 tokens, but the model takes at most 96"):
        embeddings(pooling, [[3] * 97])
    with pytest.raises(ValueError, match="the prompt is empty"):
        embeddings(pooling, [[]])
    with pytest.raises(ValueError, match=r"task='token_embed' cannot work here, where it is 'embed'"):
        embeddings(pooling, pooling_params=PoolingParams(task="token_embed"))
    assert len(embeddings(pooling)) == len(PROMPTS) and not pooling.engine.has_unfinished()
    assert generating.generate(tokens(PROMPTS[:1]), SamplingParams(max_tokens=3, detokenize=False), use_tqdm=False)


def test_what_cannot_be_built_is_refused(qwen: tuple[Path, transformers.PreTrainedModel]) -> None:
    folder, _ = qwen
    for given, said in (
        ({"runner": "generate", "convert": "embed"}, "convert=embed cannot work"),
        ({"runner": "pooling", "convert": "none"}, "pools only if it is converted"),
        ({"runner": "pooling", "pooler": {"pooling_type": "MAX"}}, "one of CLS, LAST, MEAN, ALL, STEP"),
        ({"runner": "pooling", "pooler": {"pooling": "MEAN"}}, "model.pooler.pooling does not exist"),
        ({"runner": "pooling", "pooler": {"pooling_type": "STEP"}}, "give model.pooler.step_tag_id"),
        ({"runner": "draft"}, "model.runner='draft' cannot work"),
        ({"convert": "classify"}, "no tensor score.weight"),
        ({"architecture": {"model_type": "clip"}}, r"its config\.json is of another type"),
        ({"architecture": {"model_type": "siglip2"}}, "its images keep their shapes"),
        ({"architecture": {"architectures": ["GritLM"]}}, "cannot embed in this version, which looks both ways"),
        ({"runner": "pooling", "backend": "transformers"}, "only native models can"),
        ({"runner": "pooling", "architecture": {"matryoshka_dimensions": [128]}}, "but embeddings have 64"),
        ({"runner": "pooling", "architecture": {"classifier_from_token": [1, 2, 3], "method": "from_2_way_softmax"}}, "two tokens"),
    ):
        with pytest.raises(ValueError, match=said):
            build(folder, **given)


def test_what_is_for_models_that_generate_refuses_others(qwen: tuple[Path, transformers.PreTrainedModel]) -> None:
    folder, _ = qwen
    info = read_model(ModelConfig(str(folder), runner="pooling"))
    with pytest.raises(ValueError, match=r"teacher forcing is for models that generate, and .* pools \(embed\)"):
        TeacherForcing(EngineConfig(ModelConfig(str(folder), runner="pooling")), info, 8, 8)
