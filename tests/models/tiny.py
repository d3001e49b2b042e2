"""Tiny random checkpoints of the families that only ``oracles`` can run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file

from .oracles import Oracle, Weights, internlm2_projections, minicpm_projections

INTERNLM2 = {
    "embed": "model.tok_embeddings.weight",
    "attn_norm": "attention_norm.weight",
    "mlp_norm": "ffn_norm.weight",
    "o": "attention.wo.weight",
    "gate": "feed_forward.w1.weight",
    "up": "feed_forward.w3.weight",
    "down": "feed_forward.w2.weight",
    "logits": "output.weight",
}
MINICPM = {
    "embed": "model.embed_tokens.weight",
    "attn_norm": "input_layernorm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "o": "self_attn.o_proj.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
    "logits": "model.embed_tokens.weight",
}


def make_internlm2(config: dict[str, Any], folder: Path, embed_std: float, seed: int) -> Oracle:
    """Saves a checkpoint to ``folder``."""
    hidden, d = config["hidden_size"], config["hidden_size"] // config["num_attention_heads"]
    rows = hidden + 2 * d * config["num_key_value_heads"]
    shapes = {"attention.wqkv.weight": (rows, hidden), "attention.wqkv.bias": (rows,), "attention.wo.bias": (hidden,)}
    weights = _random(config, INTERNLM2, shapes, embed_std, seed)
    return _saved(Oracle(SimpleNamespace(**config), weights, INTERNLM2, internlm2_projections), config, folder)


def make_minicpm(config: dict[str, Any], folder: Path, embed_std: float, seed: int) -> Oracle:
    """Saves a checkpoint to ``folder``."""
    hidden, d = config["hidden_size"], config["hidden_size"] // config["num_attention_heads"]
    kv = d * config["num_key_value_heads"]
    shapes = {f"self_attn.{name}_proj.weight": (rows, hidden) for name, rows in (("q", hidden), ("k", kv), ("v", kv))}
    weights = _random(config, MINICPM, shapes, embed_std, seed)
    return _saved(Oracle(SimpleNamespace(**config), weights, MINICPM, minicpm_projections), config, folder)


def _random(
    config: dict[str, Any], names: dict[str, str], more: dict[str, tuple[int, ...]], embed_std: float, seed: int
) -> Weights:
    """more: shapes of the rest of a layer. Queries and keys are large, so that attention is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    in_layer = {"o": (hidden, hidden), "gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    shapes: dict[str, tuple[int, ...]] = {names[key]: (config["vocab_size"], hidden) for key in ("embed", "logits")}
    shapes["model.norm.weight"] = (hidden,)
    for layer in range(config["num_hidden_layers"]):
        of_layer = {names[key]: shape for key, shape in in_layer.items()} | more
        of_layer |= {names[key]: (hidden,) for key in ("attn_norm", "mlp_norm")}
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in of_layer.items()}
    weights = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            weights[name] = 0.3 * noise + (1.0 if "norm" in name else 0.0)
        elif shape[0] == config["vocab_size"]:
            weights[name] = noise * embed_std
        else:
            gain = 2.5 if any(part in name for part in ("wqkv", "q_proj", "k_proj")) else 1.5
            weights[name] = noise * gain * shape[1] ** -0.5
    return weights


def _saved(oracle: Oracle, config: dict[str, Any], folder: Path) -> Oracle:
    save_file(oracle.weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return oracle
