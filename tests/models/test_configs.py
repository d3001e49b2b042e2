"""What a config.json says, without weights: what may be left out, what cannot be served, and what the simulator makes of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig

from framework.config import EngineConfig, ModelConfig
from framework.engine.kv_cache.spec import group_layers
from framework.executor.calls import CallList
from framework.executor.ranks import stages
from framework.models.architecture import read_model, read_native
from framework.models.builder import load_model
from framework.models.families import FAMILIES
from framework.models.parallel import Parallel
from framework.plan import KernelPlan

from ..framework.models.checkpoints import VOCAB
from ..framework.models.harness import BLOCK, CPU, Session
from .examples import EXAMPLES

SMALL = {"hidden_size": 64, "num_hidden_layers": 8, "num_attention_heads": 4, "vocab_size": VOCAB}
WITHOUT_CLASS = ("internlm2", "minicpm")
OF_A_LARGER_MODEL = ("gemma3",)


def native(config: dict[str, Any]) -> dict[str, Any]:
    """The architecture, with the frequencies of its rotation in place of what asks for them."""
    found, reason = read_native(config)
    assert found is not None, reason
    layers = [replace(layer, rope=None) for layer in found.layers]
    turns = [layer.rope and layer.rope.inverse_frequencies(found.max_position) for layer in found.layers]
    return {**vars(found), "layers": layers, "turns": turns}


def sizes(model_type: str) -> dict[str, Any]:
    """By the names of the family's configs."""
    fields = FAMILIES[model_type].fields
    own = {fields.get(name, name): value for name, value in SMALL.items()}
    if model_type == "bloom":
        own["hidden_size"] = own.pop("n_embed")
    return own | ({"attention_types": [[["global", "local"], 4]]} if model_type == "gpt_neo" else {})


@pytest.mark.parametrize("model_type", [name for name in FAMILIES if name not in (*WITHOUT_CLASS, *OF_A_LARGER_MODEL)])
def test_what_a_config_leaves_out_is_what_the_library_takes_it_for(model_type: str) -> None:
    given = sizes(model_type)
    filled = AutoConfig.for_model(model_type, **given).to_dict()
    assert native({"model_type": model_type, "intermediate_size": filled.get("intermediate_size"), **given}) == native(filled)


REFUSED = {
    "its attention is not causal": {"model_type": "gemma", "use_bidirectional_attention": True},
    "part of an encoder-decoder": {"model_type": "gpt_bigcode", "add_cross_attention": True},
    "carries normalized states": {"model_type": "bloom", "apply_residual_connection_post_layernorm": True},
    "of the new architecture, but not parallel": {"model_type": "falcon", "new_decoder_architecture": True, "parallel_attn": False},
    "a mixture of experts": {"model_type": "minicpm", "num_experts": 8},
    "attention is sparse": {"model_type": "minicpm", "sparse_config": {"block_size": 64}},
    "logits have a bias": {"model_type": "phi", "tie_word_embeddings": True},
    "activation 'xielu' is none of": {"model_type": "arcee", "hidden_act": "xielu"},
    "is none of the native families": {"model_type": "rwkv"},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_served_is_refused_by_name(reason: str) -> None:
    """With a folder that holds no weights: none were looked for."""
    config = {**SMALL, **REFUSED[reason]}
    with pytest.raises(ValueError, match=f"cannot run natively: .*{reason}"):
        read_model(ModelConfig("none", load_format="dummy", backend="native", architecture=config))


COUNTED = ("linear", "rms_norm", "layer_norm", "rotary", "kv_cache_write", "embedding", "paged_attention_prefill")


@pytest.mark.parametrize("name", [name for name, example in EXAMPLES.items() if example.oracle is None])
def test_a_simulated_step_calls_what_a_real_one_does(name: str) -> None:
    found = getattr(transformers, EXAMPLES[name].config_class)(**EXAMPLES[name].config)
    config = ModelConfig("none", load_format="dummy", architecture={**found.to_dict(), "dtype": "float32"})
    info = read_model(config)
    assert info.architecture is not None
    plan = KernelPlan({"qk_norm_rotary_kv_write": "none"}, [], CPU, torch.float32)
    model = load_model(config, info, plan, CPU, Parallel(), BLOCK)
    model.set_groups(group_layers(model.cache_specs()))
    Session(model, 1).step([(0, [5, 6, 7])])
    called = {op: entry["calls"] for op, entry in plan.report().items() if op in COUNTED and entry["calls"]}
    calls = CallList(info, info.architecture, EngineConfig(model=config), fused=False)
    (stage,) = stages(info.architecture, 1)
    simulated: Counter[str] = Counter()
    for call, count in calls.stage(stage).items():
        assert count > 0, call
        simulated[call.op] += count
    assert {op: simulated[op] for op in COUNTED if simulated[op]} == called
