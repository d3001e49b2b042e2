"""Falcon and BLOOM."""

from __future__ import annotations

from framework.models.families import FAMILIES

from ...framework.models.checkpoints import NEOX, SIZES, Example, family, rope, without_biases

FALCON = {key: value for key, value in SIZES.items() if key not in ("num_key_value_heads", "intermediate_size")}
RW = {**FALCON, "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}
SIX_HEADS = {"hidden_size": 96, "num_attention_heads": 6}
BLOOM = {
    **{key: NEOX[key] for key in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")},
    "hidden_size": 64,
    "n_layer": 3,
    "n_head": 4,
}
SHARED = FAMILIES["bloom"].names | {"attn_norm": ("input_layernorm",)}
NO_ALIBI = family(positions="rotary", rotates=lambda config, layer, windowed: False)

EXAMPLES = {
    "falcon-7b": Example(
        "FalconConfig",
        {**FALCON, **rope("default")},
        {
            "shared norm": family(residual="pre", names=SHARED | {"mlp_norm": ("input_layernorm",)}),
            "rotation": family(positions="alibi"),
        },
    ),
    "falcon-40b": Example(
        "FalconConfig",
        {**FALCON, **rope("default"), "new_decoder_architecture": True, "num_kv_heads": 2},
        {
            "by KV heads": family(interleaved_qkv=False),
            "norm of the MLP": family(names=SHARED | {"attn_norm": ("ln_attn",), "mlp_norm": ("ln_attn",)}, ignored=(r"ln_mlp",)),
        },
    ),
    "falcon-11b": Example(
        "FalconConfig",
        {**FALCON, **rope("default"), "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
        {"shared norm": family(residual="pre", names=SHARED | {"mlp_norm": ("input_layernorm",)})},
    ),
    # Eager attention of the library adds ALiBi twice. In bfloat16, the slopes of 4 heads are exact, and those of 20 are not; the
    # products of 12 heads are the same either way up to a distance of 66 tokens.
    "falcon-rw": Example(
        "FalconConfig",
        RW,
        {
            "alibi": NO_ALIBI,
            "before the scale": family(alibi_scaled=False),
            "biases": without_biases(),
            "by heads": family(interleaved_qkv=False),
        },
        seed=1,
        attention="sdpa",
    ),
    "falcon-rw-six": Example("FalconConfig", {**RW, **SIX_HEADS}, {"alibi": NO_ALIBI}, attention="sdpa"),
    "falcon-rw-twenty": Example(
        "FalconConfig",
        {**RW, "hidden_size": 160, "num_attention_heads": 20},
        {"before the scale": family(alibi_scaled=False)},
        attention="sdpa",
    ),
    "bloom": Example(
        "BloomConfig",
        BLOOM,
        {
            "alibi": NO_ALIBI,
            "after the scale": family(alibi_scaled=True),
            "norm of embeddings": family(embed_norm=None, ignored=(r"word_embeddings_layernorm",)),
            "biases": without_biases(),
            "by heads": family(interleaved_qkv=False),
        },
        seed=1,
    ),
    "bloom-twelve": Example("BloomConfig", {**BLOOM, "hidden_size": 96, "n_head": 12}, {"alibi": NO_ALIBI}),
}
