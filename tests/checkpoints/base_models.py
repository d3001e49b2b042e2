"""The tiny float models that the public tools quantize, their calibration tokens, and a tokenizer for the tools that want one.

Read by the scripts ``make_*.py``, each in its tool's own environment: torch, transformers and tokenizers only.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

VOCAB = 32
INPUT_IDS = [[3, 10, 15, 14, 13, 1, 1, 4, 1, 21, 17, 21]]
"""What every ``expected.safetensors`` holds the logits of. Not token 5: inputs of it lie halfway between values of e4m3."""

_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
_KINDS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"intermediate_size": 256}),
    "llama_mha": (LlamaForCausalLM, LlamaConfig, {"intermediate_size": 256, "num_key_value_heads": 4}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"intermediate_size": 256}),  # q, k and v have biases
    "qwen3_moe": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig,
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 128,
            "norm_topk_prob": True,
            "intermediate_size": 128,
        },
    ),
    "mixtral": (MixtralForCausalLM, MixtralConfig, {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 128}),
}


def build(kind: str, layers: int = 1, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """A model of one of the kinds with the same random weights on every machine."""
    model_class, config_class, sizes = _KINDS[kind]
    config = config_class(**{**_COMMON, **sizes}, num_hidden_layers=layers)
    model = model_class(config).to(dtype).eval()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.1 * noise)
            elif "embed_tokens" in name:
                parameter.copy_(noise)
            elif "lm_head" in name:
                parameter.copy_(0.2 * noise)
            else:
                # One column in sixteen is larger, so that act-order and activation-aware scales have something to find.
                parameter.copy_(0.1 * noise)
                if noise.dim() >= 2:
                    parameter[..., ::16] *= 2
    loop_over_experts(model)
    return model


def loop_over_experts(model: PreTrainedModel) -> None:
    """Grouped products of experts know no float64; transformers 4 has loops alone."""
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")


def save(folder: Path, kind: str, layers: int = 1, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Writes the model of ``build`` with the tokenizer and returns the folder."""
    build(kind, layers, dtype).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def calibration(samples: int = 16, length: int = 64) -> torch.Tensor:
    """int64 [samples, length] tokens."""
    return torch.randint(1, VOCAB, (samples, length), generator=torch.Generator().manual_seed(10))


def tokenizer() -> PreTrainedTokenizerFast:
    """One word per token: ``t5`` is token 5."""
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCAB)}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="t0", eos_token="t0", pad_token="t0")


def text(samples: int = 16, length: int = 64) -> list[str]:
    """The tokens of ``calibration`` as the tokenizer reads them."""
    return [" ".join(f"t{token}" for token in row) for row in calibration(samples, length).tolist()]
