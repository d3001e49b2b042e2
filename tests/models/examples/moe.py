"""Mixtures of experts over ordinary attention."""

from __future__ import annotations

from typing import Any

from framework.models.families import FAMILIES

from ...framework.models.checkpoints import LLAMA, SIZES, VOCAB, Example, Without, family, rope, without_biases
from .granite import SCALES, UNSCALED

FEW: dict[str, Any] = {"num_experts_per_tok": 2}
NO_SHARED = r"shared_(experts?|mlp)"


def routing(model_type: str, ignored: str = "^$", **changes: Any) -> Without:
    """Fields of ``Moe`` altered."""
    return family(routing=lambda config: {**FAMILIES[model_type].routing(config), **changes}, ignored=(ignored,))


def no_shared(model_type: str) -> Without:
    return routing(model_type, NO_SHARED, shared_size=0, shared_gate=False)


def no_norms(model_type: str) -> Without:
    names = {name: modules for name, modules in FAMILIES[model_type].names.items() if name not in ("q_norm", "k_norm")}
    return family(qk_norm="", names=names, ignored=(r"(q_norm|k_norm|query_layernorm|key_layernorm)",))


def without_part(model_type: str, part: str) -> Without:
    names = {name: modules for name, modules in FAMILIES[model_type].names.items() if name != part}
    return family(names=names, ignored=(rf"\.{part}$",))


DBRX: dict[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": 64,
    "n_heads": 4,
    "n_layers": 3,
    "max_seq_len": 96,
    "attn_config": {"kv_n_heads": 2, "clip_qkv": 1.2, "rope_theta": 10000.0},
    "ffn_config": {"ffn_hidden_size": 40, "moe_num_experts": 4, "moe_top_k": 2},
    **rope("default"),
}
SUM = {"renormalization": Without({"norm_topk_prob": False})}
V3: dict[str, Any] = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 40,
    "n_shared_experts": 2,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
}
LLAMA4: dict[str, Any] = {
    **SIZES,
    **FEW,
    **rope("default"),
    "num_hidden_layers": 4,
    "head_dim": 16,
    "intermediate_size_mlp": 80,
    "num_local_experts": 4,
    "interleave_moe_layer_step": 2,
    "no_rope_layer_interval": 2,
    "attention_chunk_size": 96,
    "floor_scale": 8,
    "attn_scale": 0.5,
}
V3_FEATURES = {"groups": Without({"n_group": 1, "topk_group": 1}), "scaling": Without({"routed_scaling_factor": 1.0}), **SUM}


def v3_features(model_type: str) -> dict[str, Without]:
    return V3_FEATURES | {
        "shared experts": no_shared(model_type),
        "bias of the choice": routing(model_type, r"e_score_correction_bias", bias=False),
    }


EXAMPLES = {
    "qwen2-moe": Example(
        "Qwen2MoeConfig",
        {
            **LLAMA,
            **FEW,
            "num_experts": 4,
            "moe_intermediate_size": 40,
            "shared_expert_intermediate_size": 56,
            "mlp_only_layers": [1],
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 2,
        },
        {
            "biases": without_biases(),
            "window": Without({"sliding_window": None}),
            "shared experts": no_shared("qwen2_moe"),
            "gate of shared experts": routing("qwen2_moe", r"shared_expert_gate", shared_gate=False),
            "no renormalization": Without({"norm_topk_prob": True}),
        },
    ),
    "granitemoe": Example(
        "GraniteMoeConfig",
        {**LLAMA, **FEW, **SCALES, "num_local_experts": 4},
        {**UNSCALED, "experts": Without({"num_experts_per_tok": 1})},
    ),
    "granitemoeshared": Example(
        "GraniteMoeSharedConfig",
        {**LLAMA, **FEW, **SCALES, "num_local_experts": 4, "shared_intermediate_size": 56},
        {"shared experts": no_shared("granitemoeshared"), **SUM},
    ),
    "olmoe": Example(
        "OlmoeConfig",
        {**LLAMA, **FEW, "num_experts": 4},
        {"q/k norm": no_norms("olmoe"), "no renormalization": Without({"norm_topk_prob": True})},
    ),
    "flex_olmo": Example("FlexOlmoConfig", {**LLAMA, **FEW, "num_experts": 4}, {"q/k norm": no_norms("flex_olmo")}),
    "glm4_moe": Example(
        "Glm4MoeConfig",
        {**SIZES, **V3, **rope("default", partial_rotary_factor=0.5), "head_dim": 16, "attention_bias": True},
        {**v3_features("glm4_moe"), "biases": without_biases(), "partial": Without(rope("default", partial_rotary_factor=1.0))},
    ),
    "glm4_moe-norms": Example(
        "Glm4MoeConfig", {**SIZES, **rope("default"), **V3, "head_dim": 16, "use_qk_norm": True}, {"q/k norm": no_norms("glm4_moe")}
    ),
    "dots1": Example(
        "Dots1Config",
        {**LLAMA, **V3, "head_dim": 16, "sliding_window": 8, "max_window_layers": 1},
        {**v3_features("dots1"), "q/k norm": no_norms("dots1"), "window": Without({"sliding_window": None})},
    ),
    "minimax_m2": Example(
        "MiniMaxM2Config",
        {**SIZES, **FEW, **rope("default", partial_rotary_factor=0.5), "head_dim": 16, "num_local_experts": 4},
        {
            "q/k norm": no_norms("minimax_m2"),
            "sigmoid": routing("minimax_m2", scoring="softmax"),
            "bias of the choice": routing("minimax_m2", r"e_score_correction_bias", bias=False),
            **SUM,
        },
    ),
    "hunyuan-moe": Example(
        "HunYuanMoEV1Config",
        {**LLAMA, "head_dim": 16, "num_experts": 4, "moe_topk": [2, 2, 2]},
        {"q/k norm": no_norms("hunyuan_v1_moe"), "shared experts": no_shared("hunyuan_v1_moe")},
    ),
    "gpt-oss": Example(
        "GptOssConfig",
        {
            **SIZES,
            **FEW,
            **rope("yarn", factor=4.0, truncate=False, original_max_position_embeddings=24),
            "head_dim": 16,
            "num_local_experts": 4,
            "sliding_window": 8,
            "swiglu_limit": 1.0,
        },
        {
            "biases": family(biases=lambda config: frozenset(), ignored=(r"bias$",)),
            "window": Without({"sliding_window": None}),
            "which layers": Without({"layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
            "sinks": without_part("gpt_oss", "sinks"),
            "clamps": Without({"swiglu_limit": 7.0}),
            "alpha": Without({"swiglu_alpha": 1.0}),
            "alternating": family(alternating_experts=False),
            "truncate": Without(rope("yarn", factor=4.0, original_max_position_embeddings=24)),
            "rope kind": Without(rope("default")),
            **SUM,
        },
    ),
    "dbrx": Example(
        "DbrxConfig",
        DBRX,
        {
            "clip": Without({"attn_config": {"kv_n_heads": 2}}),
            "layer norm": family(norm="rms"),
            "renormalization": Without({"ffn_config": {**DBRX["ffn_config"], "moe_normalize_expert_weights": None}}),
        },
        embed_std=0.4,
        seed=1,
    ),
    "llama4": Example(
        "Llama4TextConfig",
        LLAMA4,
        {
            "style": family(rotary_style="neox"),
            "no rotation": Without({"no_rope_layers": [1, 1, 1, 1]}),
            "temperature": Without({"attn_temperature_tuning": False}),
            "q/k norm": Without({"use_qk_norm": False}),
            "after the rotation": family(qk_norm_rotated=False),
            "shared experts": no_shared("llama4_text"),
            "weights on the input": routing("llama4_text", weighs_input=False),
            "sigmoid": routing("llama4_text", scoring="softmax"),
        },
    ),
    "llama4-chunks": Example(
        "Llama4TextConfig", {**LLAMA4, "attention_chunk_size": 12}, {"chunks": Without({"attention_chunk_size": 96})}
    ),
    "ernie-moe": Example(
        "Ernie4_5_MoeConfig",
        {**LLAMA, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 40},
        {
            "style": family(rotary_style="neox"),
            "shared experts": no_shared("ernie4_5_moe"),
            "bias of the choice": routing("ernie4_5_moe", r"e_score_correction_bias", bias=False),
        },
    ),
}
