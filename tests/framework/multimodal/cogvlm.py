"""Tiny random checkpoints of CogVLM and CogVLM2, of which transformers has no class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers.processors import TemplateProcessing

from .checkpoints import tokenizer

BOS, PAD, VOCAB, HIDDEN, INNER, HEADS, WIDE, PATCH, NUM_IMAGE = 256, 258, 320, 64, 96, 4, 32, 7, 18
VISION = {"hidden_size": WIDE, "num_heads": 2, "num_hidden_layers": 2, "intermediate_size": 48, "patch_size": PATCH}
VISION |= {"hidden_act": "gelu", "in_channels": 3, "layer_norm_eps": 1e-6, "dropout_prob": 0.0}
CONFIG: dict[str, Any] = {
    "architectures": ["CogVLMForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_cogvlm.CogVLMForCausalLM"},
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": 257,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
"""config.json names no model_type."""


class Checkpoint:
    """Saved to ``folder``, with a tokenizer that begins a text with BOS. second: of CogVLM2."""

    def __init__(self, folder: Path, second: bool = False) -> None:
        self.second, self.side = second, 56 if second else 28
        self.kv_heads = 2 if second else HEADS
        more = {"num_multi_query_heads": 2} if second else {}
        found = {**CONFIG, **more, "vision_config": {**VISION, "image_size": self.side}}
        generator = torch.Generator().manual_seed(0)
        self.weights: dict[str, torch.Tensor] = {}
        for name, shape in self._shapes().items():
            one = torch.randn(shape, generator=generator)
            self.weights[name] = 1 + 0.1 * one if "norm" in name and "weight" in name else one * max(shape[-1], 16) ** -0.5
        buffers = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(HIDDEN // HEADS // 2)}
        save_file({**self.weights, **buffers}, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(found))
        own = tokenizer({"image_token": "<pad>"})
        own.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
        own.save_pretrained(folder)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        qkv, text = HIDDEN + 2 * self.kv_heads * HIDDEN // HEADS, (HIDDEN,)
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "lm_head.weight": (VOCAB, HIDDEN)}
        found["model.norm.weight"] = text
        for layer in (f"model.layers.{i}." for i in range(2)):
            found |= {f"{layer}input_layernorm.weight": text, f"{layer}post_attention_layernorm.weight": text}
            for kind in ("vision", "language"):
                found[f"{layer}self_attn.{kind}_expert_query_key_value.weight"] = (qkv, HIDDEN)
                found[f"{layer}self_attn.{kind}_expert_dense.weight"] = (HIDDEN, HIDDEN)
                found |= {f"{layer}mlp.{kind}_mlp.{up}_proj.weight": (INNER, HIDDEN) for up in ("gate", "up")}
                found[f"{layer}mlp.{kind}_mlp.down_proj.weight"] = (HIDDEN, INNER)
            if self.second:
                found[f"{layer}self_attn.vision_expert_query_key_value.bias"] = (qkv,)
        tower: dict[str, tuple[int, ...]] = {
            "patch_embedding.cls_embedding": (1, WIDE),
            "boi": (1, 1, HIDDEN),
            "eoi": (1, 1, HIDDEN),
        }
        tower |= {"patch_embedding.proj.weight": (WIDE, 3, PATCH, PATCH), "patch_embedding.proj.bias": (WIDE,)}
        tower["patch_embedding.position_embedding.weight"] = ((self.side // PATCH) ** 2 + 1, WIDE)
        both = {
            "attention.query_key_value": (3 * WIDE, WIDE),
            "attention.dense": (WIDE, WIDE),
            "mlp.fc1": (48, WIDE),
            "mlp.fc2": (WIDE, 48),
        }
        both |= {"input_layernorm": (WIDE,), "post_attention_layernorm": (WIDE,)}  # type: ignore[dict-item]
        for i in range(2):
            for name, shape in both.items():
                tower |= {f"transformer.layers.{i}.{name}.weight": shape, f"transformer.layers.{i}.{name}.bias": shape[:1]}
        if self.second:
            tower |= {"conv.weight": (HIDDEN, WIDE, 2, 2), "conv.bias": text}
        tower |= {"linear_proj.linear_proj.weight": (HIDDEN, HIDDEN if self.second else WIDE), "linear_proj.norm1.weight": text}
        tower |= {"linear_proj.norm1.bias": text, "linear_proj.gate_proj.weight": (INNER, HIDDEN)}
        tower |= {"linear_proj.dense_h_to_4h.weight": (INNER, HIDDEN), "linear_proj.dense_4h_to_h.weight": (HIDDEN, INNER)}
        return found | {f"model.vision.{name}": shape for name, shape in tower.items()}
