"""Checkpoints of AutoRound: its own format in both packings, and those of GPTQ, AWQ and fp8 that it exports.

    python3.11 -m venv env
    env/bin/pip install torch==2.13.0 auto-round==0.16.1 transformers==5.23.0
    env/bin/python tests/checkpoints/make_auto_round.py [NAME ...]

A torch without a GPU does.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import base_models
import numpy as np
import recording
import reference
import torch

recording.offline()

from auto_round import AutoRound  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402


@dataclass(frozen=True)
class Checkpoint:
    has: str
    settings: dict[str, Any]
    format: str = "auto_round"
    kind: str = "llama"
    layers: int = 1
    unreadable: str = ""
    """Why the tool's own loader is not asked."""
    notes: tuple[str, ...] = ()


def integers(bits: int, group_size: int, sym: bool = True, **layer_config: dict[str, Any]) -> dict[str, Any]:
    layers = {name.replace("__", "."): settings for name, settings in layer_config.items()}
    return {"bits": bits, "group_size": group_size, "sym": sym, "iters": 2, "layer_config": layers}


ELSEWHERE = "none in this environment: gptqmodel is wanted; check_with_gptqmodel.py has it"
MINUS_ONE = "auto_round:auto_gptq stores zero points less one, and scales may be negative"
AS_THEY_ARE = "packing_format auto_round (the default where asymmetric) stores zero points as they are, with the tensors of GPTQ"
CHECKPOINTS = {
    "ar_w4": Checkpoint("4 bits, symmetric, group 32, auto_round:auto_gptq packing", integers(4, 32), notes=(MINUS_ONE,)),
    "ar_w4_awq_asym": Checkpoint(
        "4 bits, asymmetric, group 64, auto_round:auto_awq packing, biases",
        integers(4, 64, False),
        "auto_round:auto_awq",
        "qwen2",
        unreadable=ELSEWHERE,
    ),
    "ar_w4_asym": Checkpoint(
        "4 bits, asymmetric, group 64, auto_round:auto_gptq packing",
        integers(4, 64, False),
        "auto_round:auto_gptq",
        unreadable="none on a CPU: its kernels read asymmetric weights in this packing on GPUs only",
    ),
    "ar_w2_asym": Checkpoint("2 bits, asymmetric, group 32, default packing", integers(2, 32, False), notes=(AS_THEY_ARE,)),
    "ar_w3": Checkpoint("3 bits, symmetric, group 128", integers(3, 128)),
    "ar_w8": Checkpoint("8 bits, symmetric, one group (group_size -1)", integers(8, -1)),
    "ar_mixed": Checkpoint(
        "bits by layer in extra_config: 2, 3, 4, 8 and 16, groups of 32 and 64",
        integers(
            4,
            64,
            model__layers__0__self_attn__q_proj={"bits": 8, "group_size": 32},
            model__layers__0__self_attn__k_proj={"bits": 8, "group_size": 32},
            model__layers__0__self_attn__v_proj={"bits": 8, "group_size": 32},
            gate_proj={"bits": 3},
            up_proj={"bits": 3},
            model__layers__0__mlp__down_proj={"bits": 2, "group_size": 32},
            model__layers__1__mlp__down_proj={"bits": 16},
        ),
        layers=2,
    ),
    "ar_mixed_shards": Checkpoint(
        "q_proj in 4, k_proj in 8, v_proj in 16 bits; gate_proj in 2, up_proj in 4: the shards of fused projections differ",
        integers(4, 32, k_proj={"bits": 8}, v_proj={"bits": 16}, gate_proj={"bits": 2, "group_size": 64}),
    ),
    "ar_lm_head": Checkpoint("4 bits, symmetric, group 32, lm_head too", integers(4, 32, lm_head={"bits": 4, "group_size": 32})),
    "ar_moe": Checkpoint("experts and attention in 4 bits, symmetric, group 32; router plain", integers(4, 32), kind="qwen3_moe"),
    "ar_gptq": Checkpoint("exported as GPTQ: 4 bits, symmetric, group 128", integers(4, 128), "auto_gptq", unreadable=ELSEWHERE),
    "ar_awq": Checkpoint(
        "exported as AWQ: 4 bits, asymmetric, group 128", integers(4, 128, False), "auto_awq", unreadable=ELSEWHERE
    ),
    "ar_fp8_block_moe": Checkpoint(
        "fp8, experts and attention in blocks of 128 x 128 (weight_scale_inv), activations per token and 128 columns; router plain",
        {"scheme": "FP8_BLOCK", "iters": 0},
        kind="qwen3_moe",
        unreadable="none: transformers refuses the list in group_size",
    ),
    "ar_fp8_static": Checkpoint("fp8, weights per channel, static activations per tensor", {"scheme": "FP8_STATIC", "iters": 0}),
}


def dequantizer(config: dict[str, Any]) -> Any:
    """The definition that a quantization_config names."""
    # The same tensors, and the zero points are those of GPTQ's old format only where the packing says gptq.
    packing = config.get("packing_format", "auto_round:auto_awq" if config["quant_method"] == "awq" else "auto_round:auto_gptq")
    stored_minus = 0 if packing == "auto_round" else 1

    def dequantize(name: str, module: reference.Module) -> np.ndarray | None:
        if "weight_scale" in module or "weight_scale_inv" in module:
            return reference.fp8(module)
        if "qweight" not in module:
            return None
        if packing.endswith("awq"):
            return reference.awq(module)
        # Bits by layer: the zero points have one entry per output, as the scales have.
        bits = 32 * module["qzeros"].shape[1] // module["scales"].shape[1]
        return reference.gptq(module, bits, stored_minus)

    return dequantize


def make(name: str) -> None:
    checkpoint = CHECKPOINTS[name]
    with tempfile.TemporaryDirectory() as work:
        base = base_models.save(Path(work) / "base", checkpoint.kind, checkpoint.layers)
        rounder = AutoRound(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16),
            AutoTokenizer.from_pretrained(base),
            dataset=list(base_models.calibration()[:, None]),
            nsamples=16,
            seqlen=64,
            batch_size=4,
            device_map="cpu",
            enable_torch_compile=False,
            **checkpoint.settings,
        )
        rounder.quantize_and_save(f"{work}/made", format=checkpoint.format)
        folder = recording.keep(next(Path(work, "made").rglob("config.json")).parent, name)
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    dequantize = dequantizer(config)
    tensors = reference.read(folder)
    extra = {}
    if "act_bits" in config:
        quantizer = input_quantizer(config, tensors)
        quantized = reference.logits(reference.load(folder, reference.plain(tensors, dequantize)), quantizer)
        extra["logits_quantized_activations"] = (
            quantized,
            "as logits, and inputs rounded with input_scale, or |max| / 448 of a group",
        )
    own, path = {}, checkpoint.unreadable
    if not path:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu", attn_implementation="eager")
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.dtype in (torch.float16, torch.bfloat16):
                tensor.data = tensor.data.float()
        own = {"logits_quantized_activations" if extra else "logits": reference.logits(model)}
        path = f"from_pretrained with auto-round's {type(model.model.layers[0].self_attn.q_proj)}, its float16 scales made float32"
    packing = config.get("packing_format", "none")
    has_g_idx = any(tensor.endswith("g_idx") for tensor in tensors)
    recording.record(
        folder,
        tool="AutoRound",
        packages=("auto-round", "transformers", "torch"),
        has=checkpoint.has,
        settings={"format": checkpoint.format, **checkpoint.settings},
        dequantize=dequantize,
        own=own,
        own_path=path,
        extra=extra,
        base=base_models.build(checkpoint.kind, checkpoint.layers),
        notes=[f"packing_format: {packing}; g_idx: {has_g_idx}", *checkpoint.notes],
    )


def input_quantizer(config: dict[str, Any], tensors: reference.Tensors) -> reference.QuantizeInput:
    def quantize(name: str, x: torch.Tensor) -> torch.Tensor:
        if name != "experts" and not any(f"{name}.{scale}" in tensors for scale in ("weight_scale", "weight_scale_inv")):
            return x  # the projection to logits, and the router
        if config["act_dynamic"]:
            return reference.per_token(x, "fp8", 448, config["act_group_size"])
        return reference.fake_quantize(x, tensors[f"{name}.input_scale"].item(), "fp8")

    return quantize


if __name__ == "__main__":
    for wanted in recording.wanted(list(CHECKPOINTS)):
        make(wanted)
