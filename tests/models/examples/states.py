"""Models with layers that keep states."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from framework.models.families import FAMILIES, Family

from ...framework.models.checkpoints import LLAMA, SIZES, VOCAB, Example, Without, family
from .granite import SCALES, UNSCALED

PURE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
MAMBA2 = {**PURE, "num_heads": 8, "head_dim": 16, "n_groups": 2, "state_size": 16}
GRANITE_STATES = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 16,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "shared_intermediate_size": 48,
}
DELTA = {
    **LLAMA,
    "head_dim": 32,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}


def mixer(kind: str, **changes: Any) -> Without:
    """Its shapes altered."""

    def altered(entry: Family) -> Family:
        return replace(entry, mixers={kind: lambda config: replace(entry.mixers[kind](config), **changes)})

    return Without(family=altered)


def unnormalized(model_type: str) -> Without:
    names = {name: modules for name, modules in FAMILIES[model_type].names.items() if name not in ("dt_norm", "b_norm", "c_norm")}
    derived = FAMILIES[model_type].derived
    return family(names=names, derived=lambda c: {**derived(c), "normalizes_steps": False}, ignored=(r"[tbc]_layernorm",))


SPARSE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "shared_expert_intermediate_size": 40}
UNGATED = family(qk_norm="head", norm_offset=0.0)
EXAMPLES = {
    "mamba": Example(
        "MambaConfig", {**PURE, "use_bias": True}, {"biases": family(biases=lambda c: frozenset(), ignored=(r"\.bias$",))}
    ),
    "falcon-mamba": Example("FalconMambaConfig", PURE, {"norms": unnormalized("falcon_mamba")}),
    "mamba2": Example(
        "Mamba2Config", {**MAMBA2, "time_step_limit": (0.1, 0.6)}, {"step limit": mixer("mamba2", step_limit=(0.0, 9.0))}
    ),
    "jamba": Example(
        "JambaConfig",
        {**SIZES, "num_hidden_layers": 4, "num_experts": 4, "attn_layer_period": 4, "attn_layer_offset": 2, "mamba_d_state": 8},
        {"norms": unnormalized("jamba"), "experts": Without({"num_experts_per_tok": 1})},
    ),
    "granite-hybrid": Example(
        "GraniteMoeHybridConfig", {**LLAMA, **SCALES, **GRANITE_STATES, "num_local_experts": 4}, {**UNSCALED}
    ),
    "granite-hybrid-dense": Example(
        "GraniteMoeHybridConfig",
        {**LLAMA, **SCALES, **GRANITE_STATES, "num_local_experts": 0, "position_embedding_type": "rope"},
        {"rotation": Without({"position_embedding_type": None})},
    ),
    "qwen3-next": Example(
        "Qwen3NextConfig",
        {**DELTA, **SPARSE},
        {"key heads": family(interleaved_mixer=False), "norm offset": family(norm_offset=0.0)},
    ),
    "qwen3.5": Example("Qwen3_5TextConfig", DELTA, {"norm offset": UNGATED}),
    "qwen3.5-moe": Example(
        "Qwen3_5MoeTextConfig",
        {**{name: value for name, value in DELTA.items() if name != "intermediate_size"}, **SPARSE},
        {"norm offset": UNGATED, "experts": Without({"num_experts_per_tok": 1})},
    ),
}
