"""DeepSeek's kin: latent attention, groups of experts."""

from __future__ import annotations

from typing import Any

from framework.models.families import FAMILIES

from ...framework.models.checkpoints import SIZES, Example, Without, family, rope

LATENT: dict[str, Any] = {
    **SIZES,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "rms_norm_eps": 0.05,  # which is not that of the latents
}
MOE: dict[str, Any] = {
    "n_routed_experts": 12,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 40,
    "n_shared_experts": 2,
    "routed_scaling_factor": 2.5,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 24}
ALL_DIMS = rope("yarn", **YARN, mscale=1.0, mscale_all_dim=0.707)
ROUTING = {
    "groups": Without({"n_group": 1, "topk_group": 1}),
    "top groups": Without({"topk_group": 3}),
    "scaling": Without({"routed_scaling_factor": 1.0}),
    "shared experts": Without({"n_shared_experts": 0}, family(ignored=(r"shared_experts",)).family),
}
UNSCALED = Without(rope("yarn", **YARN, attention_factor=1.1386294361119891 / 1.0980110113016), None)
"""The factor of cosines and sines stays, that of scores goes."""

EXAMPLES = {
    "deepseek-v2": Example(
        "DeepseekV2Config",
        {**LATENT, **MOE, **ALL_DIMS, "topk_method": "group_limited_greedy", "norm_topk_prob": True, "mlp_bias": True},
        {
            **{name: one for name, one in ROUTING.items() if name != "groups"},
            "groups": Without({"topk_method": "greedy"}),
            "factor of scores": UNSCALED,
            "interleaved": family(rotary_style="neox"),
        },
    ),
    "deepseek-v2-lite": Example(
        "DeepseekV2Config",
        {**LATENT, **MOE, **rope("default"), "q_lora_rank": None, "topk_method": "greedy", "n_group": 1, "topk_group": 1},
        {"scaling": ROUTING["scaling"], "shared experts": ROUTING["shared experts"]},
    ),
    "deepseek-v3": Example(
        "DeepseekV3Config",
        {**LATENT, **MOE, **ALL_DIMS, "attention_bias": True, "num_nextn_predict_layers": 1},
        {
            **ROUTING,
            "renormalization": Without({"norm_topk_prob": False}),
            "factor of scores": UNSCALED,
            "interleaved": Without({"rope_interleave": False}),
            "bias of the choice": family(
                routing=lambda config: {**FAMILIES["deepseek_v3"].routing(config), "bias": False},
                ignored=(r"e_score_correction_bias",),
            ),
        },
    ),
    "minicpm3": Example(
        "MiniCPM3Config",
        {**LATENT, **rope("default"), "dim_model_base": 16},
        {name: Without({name: value}) for name, value in {"scale_emb": 1, "scale_depth": 3**0.5, "dim_model_base": 64}.items()},
    ),
}
