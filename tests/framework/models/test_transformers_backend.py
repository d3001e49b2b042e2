"""Models through the transformers library's modules, against the library with its own attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from framework import LLM, EngineConfig, SamplingParams
from framework.config import CacheConfig, ModelConfig
from framework.models.load import load_model
from framework.models.parallel import Parallel
from framework.models.read import read_model
from framework.models.transformers_model import TransformersModel
from framework.plan import KernelPlan

from .checkpoints import EXAMPLES, LLAMA, SIZES, Example, make
from .harness import BLOCK, CPU, build, error, reference, sequences, teacher_forced
from .test_loading import edit, rename

GRANITE = {"logits_scaling": 4.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5, "embedding_multiplier": 3.0}
GPT_OSS = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8, "head_dim": 16}
OTHERS = {
    "granite": Example("GraniteConfig", {**SIZES, **GRANITE}, {}),
    "cohere": Example("CohereConfig", {**SIZES, "use_qk_norm": True}, {}),
    "olmo2": Example("Olmo2Config", SIZES, {}),
    "starcoder2": Example("Starcoder2Config", {**SIZES, "sliding_window": 8}, {}),
    "gpt-oss": Example("GptOssConfig", {**LLAMA, **GPT_OSS}, {}),
}
FIRST = ("llama", "gemma2", "gpt2", "opt", "qwen3-moe")


@pytest.mark.parametrize("name", [*OTHERS, *FIRST])
def test_logits(name: str, tmp_path: Path) -> None:
    example = OTHERS.get(name) or EXAMPLES[name]
    theirs = make(example, tmp_path)
    model = build(ModelConfig(str(tmp_path), dtype="float32", backend="transformers"))
    assert isinstance(model, TransformersModel)
    tokens = sequences((5, 23, 40))
    for chunk in (None, 9):
        for ours, row in zip(teacher_forced(model, tokens, chunk, num_decodes=4), tokens):
            assert error(ours, reference(theirs, row)) <= 1e-4


def test_linear_layers_and_attention_are_ours(tmp_path: Path) -> None:
    make(OTHERS["olmo2"], tmp_path)
    config = ModelConfig(str(tmp_path), dtype="float32", backend="transformers")
    info = read_model(config)
    plan = KernelPlan({"linear": "reference"}, [], CPU, getattr(torch, info.dtype))
    model = load_model(config, info, plan, CPU, Parallel(), BLOCK)
    teacher_forced(model, sequences((9,)), None, num_decodes=2)
    report, num_layers, num_steps = plan.report(), SIZES["num_hidden_layers"], 3
    assert report["linear"]["calls"] == (7 * num_layers + 1) * num_steps
    assert report["kv_cache_write"]["calls"] == num_layers * num_steps
    assert report["paged_attention_prefill"]["calls"] == num_layers
    assert report["paged_attention_decode"]["calls"] == num_layers * (num_steps - 1)
    assert "Olmo2RMSNorm" in report["library"]["note"] and "Linear" not in report["library"]["note"]


def test_experts_are_ours_where_they_compute_the_same(tmp_path: Path) -> None:
    for name, example, ours in (("qwen3-moe", EXAMPLES["qwen3-moe"], True), ("gpt-oss", OTHERS["gpt-oss"], False)):
        make(example, tmp_path / name)
        config = ModelConfig(str(tmp_path / name), dtype="float32", backend="transformers")
        info = read_model(config)
        plan = KernelPlan({}, [], CPU, torch.float32)
        teacher_forced(load_model(config, info, plan, CPU, Parallel(), BLOCK), sequences((9,)), None, num_decodes=2)
        assert (plan.report().get("moe_experts", {}).get("calls", 0) > 0) == ours
        assert any(kind.endswith("Experts") for kind in plan.report()["library"]["note"].split("+")) != ours


def test_a_model_that_looks_across_sequences_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(OTHERS["olmo2"], tmp_path)
    norm = transformers.models.olmo2.modeling_olmo2.Olmo2RMSNorm
    plain = norm.forward
    monkeypatch.setattr(norm, "forward", lambda self, x: plain(self, x + x.roll(1, 1)) if x.dim() == 3 else plain(self, x))
    with pytest.raises(ValueError, match=r"two sequences side by side differ from each alone by [0-9.]+ .*Olmo2Model"):
        build(ModelConfig(str(tmp_path), dtype="float32", backend="transformers"))


def test_code_of_a_checkpoint_is_refused_unless_a_family_knows_the_type(tmp_path: Path) -> None:
    make(EXAMPLES["llama"], tmp_path)
    code = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "author/repo--modeling_own.OwnModel"}
    edit(tmp_path, auto_map=code)
    build(ModelConfig(str(tmp_path)))
    edit(tmp_path, model_type="own")
    for backend in ("auto", "transformers"):
        with pytest.raises(ValueError, match=r"model_type 'own' .*code of its own \(configuration_own, modeling_own\)"):
            read_model(ModelConfig(str(tmp_path), backend=backend))


def test_decode_steps_on_a_cpu_are_not_recorded() -> None:
    """The library looks at positions and chooses what to run by what it sees."""
    architecture = {**SIZES, "model_type": "granite", "dtype": "float32"}
    config = ModelConfig("none", load_format="dummy", backend="transformers", architecture=architecture)
    running = LLM(EngineConfig(config, CacheConfig(4, 50), device="cpu"))
    prompts: list[Any] = [{"prompt_token_ids": [5, 6, 7]}, {"prompt_token_ids": [8]}]
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, detokenize=False)
    assert [len(o.outputs[0].token_ids) for o in running.generate(prompts, params, use_tqdm=False)] == [5, 5]
    assert not any(entry["recorded"] for entry in running.plan().values())


def test_tensors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    make(OTHERS["olmo2"], tmp_path)
    rename(tmp_path, "model.layers.1.mlp.up_proj", "model.layers.1.mlp.upward")
    with pytest.raises(ValueError, match=r"does not fit its config.json: .*upward"):
        build(ModelConfig(str(tmp_path), backend="transformers"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"intermediate_size": 24}, "does not fit its config.json: .*mismatched_keys"),
        ({"hidden_act": "evil"}, "refuses its config.json .*KeyError: 'evil'"),
        ({"num_hidden_layers": "two"}, "refuses its config.json .*num_hidden_layers"),
    ],
)
def test_what_the_library_refuses_is_told(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    make(OTHERS["olmo2"], tmp_path)
    edit(tmp_path, **given)
    config = ModelConfig(str(tmp_path), backend="transformers", dtype="float32", skip_tokenizer=True)
    with pytest.raises(ValueError, match=said):
        LLM(EngineConfig(config, CacheConfig(num_blocks=9)))


def test_dummy_weights() -> None:
    architecture = {**SIZES, "model_type": "olmo2", "dtype": "float32"}
    config = ModelConfig("none", load_format="dummy", backend="transformers", architecture=architecture)
    first, again = (teacher_forced(build(config, seed=3), sequences((9,)), None, 2)[0] for _ in range(2))
    assert bool((first == again).all())


def test_native_is_refused_for_others() -> None:
    config = ModelConfig("none", load_format="dummy", backend="native", architecture={**SIZES, "model_type": "apertus"})
    with pytest.raises(ValueError, match="cannot run natively: model_type 'apertus' is none of the native families"):
        build(config)


SMALL: dict[str, Any] = {"vocab_size": 99, "hidden_size": 64, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ({"model_type": "mamba", **SMALL}, "does not use the attention interface"),
        ({"model_type": "bloom", **SMALL, "n_head": 4}, "does not use the attention interface"),
        ({"model_type": "t5", "vocab_size": 99, "d_model": 64, "num_layers": 2}, "encoder-decoder"),
        ({"model_type": "bert", **SMALL, "num_attention_heads": 4, "is_decoder": False}, "not causal"),
        (
            {**SIZES, "model_type": "granite", "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "longest sequence of a batch",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(architecture: dict[str, Any], reason: str) -> None:
    transformers.logging.set_verbosity_error()
    with pytest.raises(ValueError, match=reason):
        build(ModelConfig("none", load_format="dummy", backend="transformers", architecture={**architecture, "dtype": "float32"}))
