"""Tiny random checkpoints of every family, made with transformers, and what can be taken away from each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from framework.models.families import FAMILIES, Family

VOCAB = 211
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
ROPE = {"rope_theta": 10000.0}


@dataclass(frozen=True)
class Without:
    """One feature taken away: config fields altered, or the family's entry."""

    config: dict[str, Any] = field(default_factory=dict)
    family: Callable[[Family], Family] | None = None


@dataclass(frozen=True)
class Example:
    """A config class of transformers with its arguments; what can be removed; the longest sequence to admit (None = default).
    embed_std and seed are such that greedy decoding does not soon run in a circle. attention: of the library's kinds. oracle: saves
    a checkpoint of a config, with embed_std and seed, and returns what stands for the library's model, where that has none."""

    config_class: str
    config: dict[str, Any]
    without: dict[str, Without]
    max_model_len: int | None = None
    embed_std: float = 0.1
    seed: int = 11
    attention: str = "eager"
    oracle: Callable[[dict[str, Any], Path, float, int], Any] | None = None

    def library_config(self) -> Any:
        """Of its own: some of the library's classes write into the dicts that they are given, which examples share."""
        return getattr(transformers, self.config_class)(**copy.deepcopy(self.config))


def rope(kind: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, **ROPE, **parameters}}


def family(**changes: Any) -> Without:
    """Fields of the entry altered, whatever a config makes of them."""
    return Without(family=lambda entry: replace(entry, **changes, variant=lambda config: {**entry.variant(config), **changes}))


def without_biases() -> Without:
    return family(biases=lambda config: frozenset(), ignored=(r"\.bias$",))


NO_OFFSET = Without({"max_position_embeddings": 98}, lambda entry: replace(entry, position_offset=0))
PLAIN_ROPE = Without(rope("default"))
LLAMA = {**SIZES, **rope("default")}
LONG = {"short_factor": [1.0 + 0.2 * i for i in range(4)], "long_factor": [1.5 + i for i in range(4)]}
NEOX = {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}
GPT2 = {
    "vocab_size": VOCAB,
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 96,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
OPT = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "ffn_dim": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 1,
}
GEMMA = {
    **SIZES,
    "head_dim": 32,
    "sliding_window": 8,
    "query_pre_attn_scalar": 50,
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 3.0,
}
GEMMA_FEATURES = {
    "window": Without({"sliding_window": None}),
    "window on alternate layers": Without({"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}),
    "score cap": Without({"attn_logit_softcapping": None}),
    "logit cap": Without({"final_logit_softcapping": None}),
    "score scale": Without({"query_pre_attn_scalar": None}),
    "embed scale": family(derived=lambda config: {}),
    "norm offset": family(norm_offset=0.0),
    "post norms": family(
        names={k: v for k, v in FAMILIES["gemma2"].names.items() if "post" not in k},
        ignored=(r"post_(attention|feedforward)_layernorm",),
    ),
    "gelu": Without({"hidden_activation": "silu"}),
}
MOE = {**SIZES, "num_experts_per_tok": 2}

EXAMPLES: dict[str, Example] = {
    "llama": Example(
        "LlamaConfig",
        {**LLAMA, "attention_bias": True, "mlp_bias": True},
        {"biases": without_biases(), "theta": Without({"rope_parameters": {"rope_theta": 100.0}})},
    ),
    "llama-linear": Example("LlamaConfig", {**SIZES, **rope("linear", factor=4.0)}, {"rope kind": PLAIN_ROPE}),
    "llama-dynamic": Example(
        "LlamaConfig",
        {**SIZES, **rope("dynamic", factor=8.0), "max_position_embeddings": 16},
        {"rope kind": Without({**rope("default"), "max_position_embeddings": 96})},
        max_model_len=80,
    ),
    # Of seed 0 the library's own float32 logits are up to 2e-4 from its float64 ones, depending on the number of threads.
    "llama-yarn": Example(
        "LlamaConfig", {**SIZES, **rope("yarn", factor=4.0, original_max_position_embeddings=24)}, {"rope kind": PLAIN_ROPE}, seed=1
    ),
    "llama-3.1": Example(
        "LlamaConfig",
        {**SIZES, **rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)},
        {"rope kind": PLAIN_ROPE},
    ),
    "mistral": Example("MistralConfig", {**LLAMA, "sliding_window": 8}, {"window": Without({"sliding_window": None})}),
    "qwen2": Example(
        "Qwen2Config",
        {**LLAMA, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        {"bias": without_biases(), "window": Without({"sliding_window": None})},
    ),
    "qwen3": Example("Qwen3Config", {**LLAMA, "head_dim": 32, "tie_word_embeddings": True}, {"q/k norm": family(qk_norm=False)}),
    "gemma2": Example("Gemma2Config", {**GEMMA, **rope("default")}, GEMMA_FEATURES, embed_std=0.05, seed=1),
    "gemma3": Example(
        "Gemma3TextConfig",
        {
            **GEMMA,
            "final_logit_softcapping": None,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "attn_logit_softcapping": None,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
            },
        },
        {
            "q/k norm": family(qk_norm=False),
            "window": GEMMA_FEATURES["window"],
            "local theta": Without(rope("linear", factor=4.0)),
            "global rope": Without({"rope_parameters": {"rope_theta": 100.0}}),
        },
        embed_std=0.05,
        seed=2,
    ),
    "phi3": Example(
        "Phi3Config",
        {
            **SIZES,
            "original_max_position_embeddings": 24,
            "sliding_window": 16,
            **rope("longrope", partial_rotary_factor=0.5, **LONG),
        },
        {
            "partial": Without(rope("longrope", partial_rotary_factor=1.0, short_factor=[1.0] * 8, long_factor=[1.0] * 8)),
            "rope kind": Without(rope("default", partial_rotary_factor=0.5)),
            "window": Without({"sliding_window": None}),
        },
    ),
    "gpt-neox": Example(
        "GPTNeoXConfig",
        {**NEOX, **rope("default", partial_rotary_factor=0.5)},
        {
            "parallel residual": Without({"use_parallel_residual": False}),
            "biases": without_biases(),
            "partial": Without(rope("default", partial_rotary_factor=1.0)),
            "interleaved": family(interleaved_qkv=False),
        },
    ),
    "gpt-neox-sequential": Example(
        "GPTNeoXConfig", {**NEOX, "use_parallel_residual": False}, {"residual": Without({"use_parallel_residual": True})}
    ),
    "gpt2": Example(
        "GPT2Config",
        GPT2,
        {
            "positions": family(positions="rotary", ignored=(r"wpe",)),
            "biases": without_biases(),
            "scale": Without({"scale_attn_by_inverse_layer_idx": True}),
            "gelu": Without({"activation_function": "relu"}),
        },
    ),
    "opt": Example(
        "OPTConfig",
        OPT,
        {"biases": without_biases(), "position offset": NO_OFFSET, "activation": Without({"activation_function": "gelu"})},
    ),
    "opt-post-norm": Example(
        "OPTConfig",
        {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 32},
        {"post norm": family(residual="pre", final_norm="layers.0.final_layer_norm")},
        embed_std=2.0,
        seed=1,
    ),
    "mixtral": Example(
        "MixtralConfig",
        {**MOE, "num_local_experts": 4},
        {"renormalization": Without({"norm_topk_prob": False}), "experts": Without({"num_experts_per_tok": 1})},
    ),
    "qwen3-moe": Example(
        "Qwen3MoeConfig",
        {**MOE, "head_dim": 32, "num_experts": 4, "moe_intermediate_size": 48, "norm_topk_prob": True, "mlp_only_layers": [0]},
        {
            "renormalization": Without({"norm_topk_prob": False}),
            "q/k norm": family(qk_norm=False),
            "experts": Without({"num_experts_per_tok": 1}),
        },
    ),
}


def make(example: Example, folder: Path, shard_size: str = "1GB") -> Any:
    """Saves a random checkpoint to ``folder`` and returns the model of transformers, in float32."""
    if example.oracle is not None:
        return example.oracle(example.config, folder, example.embed_std, example.seed)
    config = example.library_config()
    config._attn_implementation = example.attention
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    generator = torch.Generator().manual_seed(example.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(_scaled(name, parameter, noise, example))
        for name, buffer in model.named_buffers():
            if name.endswith("correction_bias"):  # of the choice of experts: as large as their scores differ
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
    if model.config.tie_word_embeddings:
        model.tie_weights()
    model.save_pretrained(folder, max_shard_size=shard_size)
    return model


def _scaled(name: str, parameter: torch.Tensor, noise: torch.Tensor, example: Example) -> torch.Tensor:
    """Weights that keep activations near 1, with large queries and keys: attention must be far from uniform."""
    if name.endswith(("A_log", "dt_bias", "dt_proj.bias", ".D")):  # of recurrences that remember, each in its own way
        return 0.7 * noise - 1.0
    if parameter.dim() == 1 or "_norm." in name:
        offset = any(kind in example.config_class for kind in ("Gemma", "Nemotron", "Qwen3Next", "Qwen3_5"))
        offset = offset and not name.endswith("linear_attn.norm.weight")
        return 0.3 * noise + (1.0 if name.endswith("weight") and not offset else 0.0)
    if any(part in name for part in ("embed", "wte", "wpe", "lm_head")):
        return noise * example.embed_std
    fan_in = parameter.shape[0] if example.config_class in ("GPT2Config", "OpenAIGPTConfig") else parameter.shape[-1]
    gain = 4.0 if any(part in name for part in ("q_proj", "k_proj", "q_b_proj")) else 1.5
    gain = 2.5 if any(part in name for part in ("qkv", "c_attn", "kv_b_proj", "kv_a_proj")) else gain
    return noise * gain * (2.5 if "query_key_value" in name else 1.0) * fan_in**-0.5
