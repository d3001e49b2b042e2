"""What a config.json says, without weights: what may be left out, what cannot be served, and what the simulator makes of it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig

from framework.config import EngineConfig, ModelConfig
from framework.engine.kv_cache.spec import group_layers
from framework.executor.calls import CallList
from framework.models.families import FAMILIES
from framework.models.load import load_model
from framework.models.native import read_native
from framework.models.parallel import Parallel
from framework.models.parts import all_parts
from framework.models.ranks import stages
from framework.models.read import read_model
from framework.plan import KernelPlan

from ..framework.models.checkpoints import VOCAB
from ..framework.models.harness import BLOCK, CPU, Session
from .examples import EXAMPLES

CONF = Path(__file__).parents[2] / "conf" / "model"
SMALL = {"hidden_size": 2560, "num_hidden_layers": 8, "num_attention_heads": 160, "vocab_size": VOCAB}
"""Heads that every family's usual number of KV heads can serve."""
WITHOUT_CLASS = ("cogvlm", "internlm2", "minicpm", "sdar", "sdar_moe", "llada2_moe")
OF_A_LARGER_MODEL = ("gemma3", "llama4")


def native(config: dict[str, Any]) -> dict[str, Any]:
    """The architecture, with the frequencies of its rotation in place of what asks for them."""
    found, reason = read_native(config)
    assert found is not None, reason
    layers = [replace(layer, rope=None) for layer in found.layers]
    turns = [layer.rope and layer.rope.inverse_frequencies(found.max_position) for layer in found.layers]
    tied = found.tied and found.family.causal  # encoders have no logits
    return {**vars(found), "layers": layers, "turns": turns, "tied": tied}


def sizes(model_type: str) -> dict[str, Any]:
    """By the names of the family's configs."""
    fields = FAMILIES[model_type].fields
    own = {fields.get(name, name): value for name, value in SMALL.items()}
    if model_type == "deepseek_v2":
        own["num_experts_per_tok"] = 6  # which the library's config leaves open
    if model_type == "gptj":
        own["n_head"] = 40  # so that a head holds the 64 elements that usually rotate
    if model_type == "dots1":  # likewise
        own |= {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2}
    if model_type == "mamba2":
        own["num_heads"] = 80  # as many as are twice as wide as the model
    if model_type == "bloom":
        own["hidden_size"] = own.pop("n_embed")
    return own | ({"attention_types": [[["global", "local"], 4]]} if model_type == "gpt_neo" else {})


@pytest.mark.parametrize("model_type", [name for name in FAMILIES if name not in (*WITHOUT_CLASS, *OF_A_LARGER_MODEL)])
def test_what_a_config_leaves_out_is_what_the_library_takes_it_for(model_type: str) -> None:
    given = sizes(model_type)
    filled = AutoConfig.for_model(model_type, **given).to_dict()
    assert native({"model_type": model_type, "intermediate_size": filled.get("intermediate_size"), **given}) == native(filled)


def test_falcon_40b_has_two_norms_side_by_side() -> None:
    """Its config does not say so; the library's model writes it there."""
    found, reason = read_native({**sizes("falcon"), "model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 8})
    assert found is not None, reason
    assert (found.family.names["attn_norm"], found.family.names["mlp_norm"]) == (("ln_attn",), ("ln_mlp",))


PUBLISHED = {
    "jamba-v0.1": 51_570_323_328,
    "mamba-2.8b": 2_768_345_600,
    "mamba-codestral-7b": 7_285_403_648,
    "bloom-560m": 559_214_592,
    "command-r": 34_980_831_232,
    "dbrx": 131_596_523_520,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v3": 671_026_419_200,
    "falcon-7b": 6_921_720_704,
    "glm-4-9b": 9_399_951_360,
    "gpt-j-6b": 6_050_882_784,
    "gpt-oss-20b": 20_914_757_184,
    "granite-3.1-8b": 8_170_848_256,
    "granite-4.0-h-tiny": 6_939_037_248,
    "internlm2-7b": 7_737_708_544,
    "olmo-2-7b": 7_298_617_344,
    "phi-2": 2_779_683_840,
    "qwen1.5-moe-a2.7b": 14_315_784_192,
    "smollm3-3b": 3_075_098_624,
    "stablelm-2-1.6b": 1_644_515_328,
    "starcoder2-3b": 3_030_371_328,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_have_the_published_number_of_parameters(name: str) -> None:
    fields = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    found = read_model(ModelConfig(**{**fields, "load_format": "dummy"})).architecture
    assert found is not None
    numbers = (math.prod(part.shape) + (math.prod(part.bias_shape) if part.bias else 0) for part in all_parts(found))
    assert sum(numbers) == PUBLISHED[name]


def test_the_shape_of_qwen3_5_is_that_of_the_librarys_config() -> None:
    """Whose defaults are this model's but for what it was trained to read; its name says how many parameters there are."""
    given = yaml.safe_load((CONF / "qwen3.5-35b-a3b.yaml").read_text())["architecture"]
    theirs = AutoConfig.for_model("qwen3_5_moe_text").to_dict()
    others = {"dtype", "max_position_embeddings", "eos_token_id"}
    assert {name for name, value in given.items() if name in theirs and theirs[name] != value} == others
    found, reason = read_native(given)
    assert found is not None, reason
    assert [replace(layer, rope=None) for layer in found.layers] == native(theirs)["layers"]
    assert round(sum(math.prod(part.shape) for part in all_parts(found)) / 1e9) == 35


REFUSED = {
    "its attention is not causal": {"model_type": "gemma", "use_bidirectional_attention": True},
    "part of an encoder-decoder": {"model_type": "gpt_bigcode", "add_cross_attention": True},
    "carries normalized states": {"model_type": "bloom", "apply_residual_connection_post_layernorm": True},
    "of the new architecture, but not parallel": {"model_type": "falcon", "new_decoder_architecture": True, "parallel_attn": False},
    "a mixture of experts": {"model_type": "minicpm", "num_experts": 8},
    "attention is sparse": {"model_type": "minicpm", "sparse_config": {"block_size": 64}},
    "layers of kind linear_attention": {"model_type": "qwen3", "layer_types": ["linear_attention", "full_attention"] * 4},
    "activation 'xielu' is none of": {"model_type": "arcee", "hidden_act": "xielu"},
    "biases but no latent of queries": {"model_type": "deepseek_v2", "q_lora_rank": None, "attention_bias": True},
    "topk_method 'random' is none of": {"model_type": "deepseek_v2", "topk_method": "random"},
    "scoring_func 'softmax' is not sigmoid": {"model_type": "deepseek_v3", "scoring_func": "softmax"},
    "a mixture of experts in every 2. layer": {"model_type": "deepseek_v3", "moe_layer_freq": 2},
    "its no_rope_layers name 2 of 8 layers": {"model_type": "smollm3", "no_rope_layers": [1, 0]},
    "divided by their 2-norm": {"model_type": "dbrx", "d_model": 64, "ffn_config": {"moe_normalize_expert_weights": 2}},
    "clips queries and keys after their norms": {"model_type": "olmoe", "clip_qkv": 8.0, "num_key_value_heads": 160},
    "experts' activation is 'gelu'": {"model_type": "mixtral", "hidden_act": "gelu", "intermediate_size": 96},
    "is none of the native families": {"model_type": "rwkv"},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_served_is_refused_by_name(reason: str) -> None:
    """With a folder that holds no weights: none were looked for."""
    config = {**SMALL, **REFUSED[reason]}
    with pytest.raises(ValueError, match=f"cannot run natively: .*{reason}"):
        read_model(ModelConfig("none", load_format="dummy", backend="native", architecture=config))


def test_heads_that_share_unevenly_are_refused() -> None:
    with pytest.raises(ValueError, match="has 160 heads that share 3 KV heads"):
        read_native({**SMALL, "model_type": "llama", "num_key_value_heads": 3})


def test_groups_that_cannot_hold_the_experts_are_refused() -> None:
    with pytest.raises(ValueError, match="asks for 8 of 256 experts, out of the best 4 of 7 groups"):
        read_native({**SMALL, "model_type": "deepseek_v3", "n_group": 7})
    with pytest.raises(ValueError, match="has no 'kv_lora_rank'"):
        read_native({**SMALL, "model_type": "deepseek_v3", "kv_lora_rank": None})

    with pytest.raises(ValueError, match="asks for 8 of 256 experts, out of the best 100 of 256 groups"):
        read_native({**SMALL, "model_type": "deepseek_v3", "n_group": 256, "topk_group": 100})  # best two of one


@pytest.mark.parametrize(
    ("given", "biased"),
    [
        ({"qkv_bias": True, "bias": False}, {"qkv"}),
        ({"qkv_bias": False, "bias": True}, {"o", "gate_up", "down"}),
        ({"attention_bias": True, "mlp_bias": False}, {"qkv"}),
    ],
)
def test_internlm3_names_its_biases_in_two_ways(given: dict[str, bool], biased: set[str]) -> None:
    found, reason = read_native({**SMALL, "model_type": "internlm3", **given})
    assert found is not None and found.biases == biased, reason


@pytest.mark.parametrize("used", [True, False])
def test_smollm3_has_windows_where_it_uses_them(used: bool) -> None:
    found, reason = read_native({**SMALL, "model_type": "smollm3", "sliding_window": 8, "use_sliding_window": used})
    assert found is not None, reason
    assert [layer.window for layer in found.layers] == [None, None, None, 8 if used else None] * 2


def test_a_window_of_no_tokens_is_none() -> None:
    """Some configs of the library say so."""
    found, reason = read_native({**SMALL, "model_type": "mistral", "num_key_value_heads": 8, "sliding_window": 0})
    assert found is not None, reason
    assert {layer.window for layer in found.layers} == {None}


def test_command_r_reads_as_far_as_it_was_trained() -> None:
    config = {**sizes("cohere"), "model_type": "cohere", "max_position_embeddings": 8192, "model_max_length": 131072}
    assert read_model(ModelConfig("none", load_format="dummy", architecture=config)).max_model_len == 131072


def test_gemma_3_counts_its_positions_as_they_are_stretched() -> None:
    """Others count them as they were before. Its model card says 128K tokens."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 100}
    scaling = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "max_position_embeddings": 131072}
    for model_type, longest in (("gemma3_text", 131072), ("llama", 8 * 131072)):
        config = {**sizes, **scaling, "model_type": model_type}
        assert read_model(ModelConfig("none", load_format="dummy", architecture=config)).max_model_len == longest


OF_A_WRONG_KIND: tuple[tuple[str, str, Any, str], ...] = (
    ("falcon", "alibi", "false", "true or false"),
    ("falcon", "num_kv_heads", "8", "a positive whole number"),
    ("llama", "tie_word_embeddings", "false", "true or false"),
    ("llama", "head_dim", True, "a positive whole number"),
    ("mistral", "sliding_window", -1, "a whole number"),
    ("gemma3", "text_config", "none", "an object"),
    ("llama", "architectures", 3, "a list of names"),
    ("stablelm", "layer_norm_eps", math.nan, "a positive number"),
    ("granite", "logits_scaling", 0, "a positive number"),
    ("minicpm", "scale_depth", "1.4", "a positive number"),
    ("cohere", "logit_scale", math.nan, "a positive number"),
    ("olmo", "clip_qkv", [8], "a positive number"),
    ("smollm3", "no_rope_layers", {"0": 1}, "a list of 0 and 1"),
    ("deepseek_v3", "n_routed_experts", "256", "a whole number"),
    ("deepseek_v3", "first_k_dense_replace", -1, "a whole number"),
    ("deepseek_v3", "n_group", 0, "a positive whole number"),
)


@pytest.mark.parametrize(("model_type", "name", "value", "expected"), OF_A_WRONG_KIND)
def test_fields_of_a_wrong_kind_are_named(model_type: str, name: str, value: Any, expected: str) -> None:
    config = {**sizes(model_type), "model_type": model_type, name: value}
    with pytest.raises(ValueError, match=rf"has {name}=.*, expected {expected}$"):
        read_model(ModelConfig("none", load_format="dummy", backend="native", architecture=config))


ROPES: dict[str, dict[str, Any]] = {
    "rope_type='llama3' without low_freq_factor, high_freq_factor": {"rope_type": "llama3", "factor": 8.0},
    "rope_type='linear' without factor": {"type": "linear"},
    r"rotates 24 of a head's 16 elements": {"rope_type": "default", "partial_rotary_factor": 1.5},
    r"rotates 3 of a head's 16 elements": {"rope_type": "default", "partial_rotary_factor": 0.2},
    r"short_factor=\[1.0\], expected 8 positive numbers": {"long_factor": [2.0] * 8, "short_factor": [1.0]},
    "mscale='1', expected a positive number": {"rope_type": "yarn", "factor": 4.0, "mscale": "1"},
}


@pytest.mark.parametrize("reason", ROPES)
def test_rotations_that_nobody_can_compute_are_refused(reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_native({**SMALL, "model_type": "llama", "rope_scaling": ROPES[reason]})


def test_code_of_unknown_types_is_named_however_it_is_listed() -> None:
    config = {**SMALL, "model_type": "unheard-of", "auto_map": {"AutoTokenizer": [None, "theirs--hostile.Tokenizer"]}}
    with pytest.raises(ValueError, match=r"code of its own \(hostile\)"):
        read_model(ModelConfig("none", load_format="dummy", architecture=config))


COUNTED = (
    *("linear", "rms_norm", "layer_norm", "rotary", "kv_cache_write", "embedding", "paged_attention_prefill"),
    *("head_linear", "moe_route"),
)


@pytest.mark.parametrize("name", [name for name, example in EXAMPLES.items() if example.oracle is None])
def test_a_simulated_step_calls_what_a_real_one_does(name: str) -> None:
    found = EXAMPLES[name].library_config()
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
