"""Logits after given tokens, and their comparison, against transformers in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from framework.config import CacheConfig, EngineConfig, ModelConfig
from framework.models.hub import resolve_model
from framework.models.read import read_model
from framework.settling import settle_block_size
from framework.worker.teacher_forcing import TeacherForcing, TokenScores, score

from .test_quantized_cache import GEMMA3

VOCAB = 300


def forced(config: EngineConfig, window_tokens: int = 60, chunk_tokens: int = 60, num_rows: int = 1) -> TeacherForcing:
    config = settle_block_size(config)
    return TeacherForcing(config, read_model(config.model), window_tokens, chunk_tokens, num_rows)


def engine(model: str | Path, **changed: object) -> EngineConfig:
    return EngineConfig(ModelConfig(str(model), dtype="float32"), device="cpu", num_threads=1, **changed)  # type: ignore[arg-type]


def windows(num: int, length: int = 60, vocab: int = VOCAB) -> np.ndarray:
    return np.random.default_rng(3).integers(0, vocab, (num, length))


def log_probabilities(folder: Path, ids: np.ndarray) -> torch.Tensor:
    """By transformers: float64 [N, W, V]."""
    with torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
        return model(torch.from_numpy(ids)).logits.log_softmax(-1)


def expected_scores(folder: Path, baseline: Path, ids: np.ndarray) -> TokenScores:
    q, p = (log_probabilities(path, ids)[:, :-1] for path in (folder, baseline))
    targets = torch.from_numpy(ids[:, 1:, None])
    kl = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    nats = (-x.gather(2, targets)[..., 0].numpy() for x in (q, p))
    return TokenScores(kl.numpy(), *nats, (q.argmax(-1) == p.argmax(-1)).numpy())


def assert_close(found: TokenScores, expected: TokenScores) -> None:
    for name in ("kl", "nats", "baseline_nats"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=2e-4, atol=2e-5, err_msg=name)
    assert found.agrees.dtype == bool and (found.agrees == expected.agrees).mean() > 0.995


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A random model, and the same with other noise on its weights."""
    shape = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    torch.manual_seed(5)
    model = LlamaForCausalLM(shape)
    folders = tuple(tmp_path_factory.mktemp(name) for name in ("noisy", "model"))
    model.save_pretrained(folders[1])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    model.save_pretrained(folders[0])
    return folders[0], folders[1]


@pytest.mark.parametrize(("chunk_tokens", "num_rows"), [(60, 1), (60, 3), (1, 2), (7, 1), (32, 2)])
def test_scores_of_a_random_model_are_those_of_transformers(
    checkpoints: tuple[Path, Path], chunk_tokens: int, num_rows: int
) -> None:
    ids = windows(3)
    ours = (forced(engine(folder), chunk_tokens=chunk_tokens, num_rows=num_rows) for folder in checkpoints)
    expected = expected_scores(*checkpoints, ids)
    assert expected.kl.mean() > 1e-3 and 0.5 < expected.agrees.mean() < 1
    assert_close(score(*ours, ids, num_rows), expected)


def test_scores_of_the_embedded_models_are_those_of_transformers() -> None:
    ids = windows(2, 40, 2048)
    expected = expected_scores(resolve_model("tiny-draft"), resolve_model("tiny"), ids)
    assert_close(score(forced(engine("tiny-draft")), forced(engine("tiny")), ids), expected)


def test_large_vocabularies_are_compared_in_parts(checkpoints: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    models = [forced(engine(folder)) for folder in checkpoints]
    whole = score(*models, windows(1))
    monkeypatch.setattr("framework.worker.teacher_forcing.MAX_COMPARED", 7 * VOCAB)
    parts = score(*models, windows(1))
    assert all(np.array_equal(getattr(whole, name), getattr(parts, name)) for name in vars(whole))


def test_a_model_equals_itself_bit_by_bit(checkpoints: tuple[Path, Path]) -> None:
    scores = score(forced(engine(checkpoints[0])), forced(engine(checkpoints[0])), windows(2))
    assert not scores.kl.any() and scores.agrees.all() and np.array_equal(scores.nats, scores.baseline_nats)


def test_one_token_at_a_time_runs_the_decode_kernels_and_their_recordings(checkpoints: tuple[Path, Path]) -> None:
    single, chunked = (forced(engine(checkpoints[0]), chunk_tokens=chunk) for chunk in (1, 30))
    for model in (single, chunked):
        list(model.logits(windows(1)))
    report = single.plan_report()
    assert report["paged_attention_decode"]["recorded"] and report["paged_attention_decode"]["calls"] > 0
    assert report["paged_attention_prefill"]["calls"] == 2  # the first token of a window has no context yet
    report = chunked.plan_report()
    assert not report["paged_attention_decode"]["recorded"] and report["paged_attention_decode"]["calls"] == 0


def test_groups_of_layers_have_blocks_of_their_own() -> None:
    """Windowed and full layers, rows side by side, chunk by chunk, and a quantized cache that notices a wrong slot."""
    model = ModelConfig(load_format="dummy", architecture=GEMMA3, dtype="float32")
    ids = windows(3, 90, 290)
    found = []
    for chunk_tokens, num_rows in ((90, 1), (11, 3), (1, 2)):
        config = EngineConfig(model, CacheConfig(4, dtype="int8"), kernels={"default": "reference"}, device="cpu", num_threads=1)
        forcing = forced(config, 90, chunk_tokens, num_rows)
        assert len(forcing.groups) > 1
        parts = [torch.cat([c.clone() for c in forcing.logits(ids[i : i + num_rows])], 1) for i in range(0, 3, num_rows)]
        found.append(torch.cat(parts))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_what_cannot_be_compared_is_refused(checkpoints: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="window_tokens=65 is more than the 64 positions"):
        forced(engine(checkpoints[0]), 65)
    with pytest.raises(ValueError, match="2048 tokens cannot be compared with a baseline of 300"):
        score(forced(engine("tiny")), forced(engine(checkpoints[0])), windows(1))


def test_encoder_decoders_whose_encoder_reads_nothing_are_refused() -> None:
    sizes = {
        "vocab_size": VOCAB,
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 48,
        "num_layers": 1,
        "num_heads": 2,
        "decoder_start_token_id": 0,
    }
    model = ModelConfig("made up", load_format="dummy", skip_tokenizer=True, architecture={"model_type": "t5", **sizes})
    with pytest.raises(ValueError, match="teacher forcing is for models that read tokens alone, and 'made up' has an encoder"):
        forced(EngineConfig(model, device="cpu"))
