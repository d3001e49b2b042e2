"""GPT's kin."""

from __future__ import annotations

from framework.models.families import FAMILIES

from ...framework.models.checkpoints import GPT2, NO_OFFSET, SIZES, Example, Without, family, without_biases

GPT_NEO = {
    "vocab_size": SIZES["vocab_size"],
    "hidden_size": 64,
    "num_layers": 3,
    "num_heads": 4,
    "max_position_embeddings": 96,
    "attention_types": [[["global", "local"], 1], [["global"], 1]],
    "window_size": 8,
    "bos_token_id": None,
    "eos_token_id": None,
}
BIOGPT = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
TWO_NORMS = family(residual="pre", names={**FAMILIES["gptj"].names, "mlp_norm": ("ln_1",)})
NO_POSITIONS = family(positions="rotary", rotates=lambda config, layer, windowed: False, ignored=(r"wpe", r"position"))

EXAMPLES = {
    "gptj": Example(
        "GPTJConfig",
        {**GPT2, "rotary_dim": 8},
        {
            "shared norm": TWO_NORMS,
            "style": family(rotary_style="neox"),
            "partial": Without({"rotary_dim": 16}),
            "biased logits": family(biases=lambda config: frozenset({"up", "down"}), ignored=(r"lm_head\.bias",)),
        },
    ),
    "gpt_bigcode": Example("GPTBigCodeConfig", GPT2, {"biases": without_biases(), "positions": NO_POSITIONS}),
    "gpt_bigcode-heads": Example("GPTBigCodeConfig", {**GPT2, "multi_query": False}, {"by heads": family(interleaved_qkv=False)}),
    "gpt_neo": Example(
        "GPTNeoConfig",
        GPT_NEO,
        {
            "window": Without({"window_size": None}),
            "which layers": Without({"attention_types": [[["local"], 3]]}),
            "no scale": Without({"scale_attn_weights": True}),
            "biases": without_biases(),
        },
    ),
    "openai-gpt": Example(
        "OpenAIGPTConfig",
        GPT2,
        {"post norm": family(residual="pre", final_norm="h.0.ln_1"), "positions": NO_POSITIONS, "gelu": Without({"afn": "relu"})},
        embed_std=1.0,
        seed=5,
    ),
    "biogpt": Example(
        "BioGptConfig",
        {**BIOGPT, "pad_token_id": 1},
        {"embed scale": Without({"scale_embedding": False}), "position offset": NO_OFFSET},
        embed_std=0.01,
        seed=3,
    ),
}
