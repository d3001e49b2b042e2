"""Checkpoints of llm-compressor in the format of compressed-tensors.

    python3.11 -m venv env
    env/bin/pip install torch==2.13.0 llmcompressor==0.14.0.1 compressed-tensors==0.19.0 transformers==5.17.0
    env/bin/python tests/checkpoints/make_llm_compressor.py [NAME ...]

A torch without a GPU does. ``weight_g_idx`` comes from make_llm_compressor_g_idx.py: this version no longer writes it.
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

from datasets import Dataset  # noqa: E402
from llmcompressor import oneshot  # noqa: E402
from llmcompressor.modifiers.gptq import GPTQModifier  # noqa: E402
from llmcompressor.modifiers.quantization import QuantizationModifier  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402


def groups(*targets_weights_inputs: tuple[str | list[str], dict[str, Any], dict[str, Any] | None]) -> dict[str, Any]:
    """config_groups of (targets, weights, input activations)."""
    return {
        "config_groups": {
            f"group_{i}": {
                "targets": [targets] if isinstance(targets, str) else targets,
                "weights": weights,
                "input_activations": inputs,
            }
            for i, (targets, weights, inputs) in enumerate(targets_weights_inputs)
        }
    }


def integers(bits: int, strategy: str, group_size: int | None = None, symmetric: bool = True) -> dict[str, Any]:
    return {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy, "group_size": group_size}


def static(symmetric: bool) -> dict[str, Any]:
    return {"num_bits": 8, "type": "int", "symmetric": symmetric, "strategy": "tensor", "dynamic": False}


@dataclass(frozen=True)
class Checkpoint:
    has: str
    settings: dict[str, Any]
    kind: str = "llama"
    layers: int = 1
    modifier: type = QuantizationModifier


FP8_CACHE = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
PLAIN_ROUTER = ["lm_head", "re:.*mlp\\.gate$"]
CHECKPOINTS = {
    "ct_w4a16": Checkpoint(
        "4 bits, symmetric, group 128, by GPTQ with actorder=weight: no g_idx", {"scheme": "W4A16"}, modifier=GPTQModifier
    ),
    "ct_w4a16_asym": Checkpoint(
        "4 bits, asymmetric, group 32, biases", groups(("Linear", integers(4, "group", 32, symmetric=False), None)), "qwen2"
    ),
    "ct_w8a16": Checkpoint("8 bits, symmetric, per channel", groups(("Linear", integers(8, "channel"), None))),
    "ct_w8a16_asym": Checkpoint(
        "8 bits, asymmetric, group 64", groups(("Linear", integers(8, "group", 64, symmetric=False), None))
    ),
    "ct_mixed_ignore": Checkpoint(
        "4 bits of group 64, down_proj of layer 1 in 8 bits per channel, that of layer 0 in no group; ignored modules",
        groups(
            ("re:.*layers\\.1\\.mlp\\.down_proj$", integers(8, "channel"), None),
            (["re:.*self_attn\\..*_proj$", "re:.*gate_proj$", "re:.*up_proj$"], integers(4, "group", 64), None),
        )
        | {"ignore": ["lm_head", "re:.*layers\\.0\\.self_attn\\.[qkv]_proj$", "model.layers.1.self_attn.o_proj"]},
        layers=2,
    ),
    "ct_w8a8_dynamic": Checkpoint("int8, weights per channel, activations per token", {"scheme": "W8A8"}),
    "ct_w8a8_static": Checkpoint(
        "int8, weights per tensor, activations static per tensor, symmetric",
        groups(("Linear", integers(8, "tensor"), static(True))),
    ),
    "ct_w8a8_static_asym": Checkpoint(
        "int8, weights per channel, activations static per tensor, asymmetric, biases",
        groups(("Linear", integers(8, "channel"), static(False))),
        "qwen2",
    ),
    "ct_fp8_dynamic": Checkpoint("fp8, weights per channel, activations per token", {"scheme": "FP8_DYNAMIC"}),
    "ct_fp8_static": Checkpoint("fp8, weights and static activations per tensor", {"scheme": "FP8"}),
    "ct_fp8_block": Checkpoint(
        "fp8, weights in blocks of 128 x 128, activations per token and 128 columns", {"scheme": "FP8_BLOCK"}
    ),
    "ct_fp8_kv": Checkpoint(
        "fp8, weights per channel, and scales of an fp8 KV cache", {"scheme": "FP8_DYNAMIC", "kv_cache_scheme": FP8_CACHE}
    ),
    "ct_moe_w4a16_asym": Checkpoint(
        "experts and attention in 4 bits, asymmetric, group 64; router plain",
        groups(("Linear", integers(4, "group", 64, symmetric=False), None)) | {"ignore": PLAIN_ROUTER},
        "qwen3_moe",
    ),
    "ct_moe_fp8": Checkpoint(
        "experts and attention in fp8, weights per channel, activations per token; router plain",
        {"scheme": "FP8_DYNAMIC", "ignore": PLAIN_ROUTER},
        "qwen3_moe",
    ),
    "ct_moe_mxfp4": Checkpoint(
        "experts in mxfp4, the rest plain", {"scheme": "MXFP4A16", "ignore": [*PLAIN_ROUTER, "re:.*self_attn.*"]}, "qwen3_moe"
    ),
}


def input_quantizers(config: dict[str, Any], tensors: reference.Tensors) -> dict[str, reference.QuantizeInput]:
    """Name of the logits -> what a module's input is rounded to, from a config whose groups quantize inputs alike."""
    inputs = next(iter(config["config_groups"].values()))["input_activations"]
    if inputs is None:
        return {}
    ignored = set(config["ignore"])
    kind = "fp8" if inputs["type"] == "float" else "int8"

    def dynamic(largest: float) -> reference.QuantizeInput:
        return lambda name, x: x if name in ignored else reference.per_token(x, kind, largest, inputs["group_size"])

    def static(name: str, x: torch.Tensor) -> torch.Tensor:
        if name in ignored:
            return x
        zero = tensors.get(f"{name}.input_zero_point", np.zeros(1)).item()
        return reference.fake_quantize(x, tensors[f"{name}.input_scale"].item(), kind, int(zero))

    if not inputs["dynamic"]:
        return {"logits_quantized_activations": static}
    return {"logits_quantized_activations": dynamic(448)} if kind == "fp8" else {"logits_activations_to_127": dynamic(127)}


def dequantize(name: str, module: reference.Module) -> np.ndarray | None:
    return reference.compressed_tensors(module) if "weight_scale" in module else None


HOW = {
    "logits_quantized_activations": "as logits, and inputs rounded with the static scales, or |max| / 448 of a token or group",
    "logits_activations_to_127": "as logits, and inputs rounded with |max| / 127 of a token, as the kernels of serving engines do",
    "logits_own_activations": (
        "float32, from_pretrained with compressed-tensors: inputs rounded with |max| / 127.5 of a token. A largest value that is "
        "negative lies at -127.5, where the last bit of a float32 decides between -127 and -128: not to be matched closely"
    ),
    "logits_fp8_cache": "as logits, and keys (after rope) and values rounded to e4m3 with k_scale and v_scale",
    "logits_quantized_activations_and_cache": "both",
}


def make(name: str) -> None:
    checkpoint = CHECKPOINTS[name]
    settings = {"ignore": ["lm_head"], **checkpoint.settings}
    if "scheme" in settings:
        settings["targets"] = "Linear"
    tokens = base_models.calibration()
    dataset = Dataset.from_dict({"input_ids": tokens.tolist(), "attention_mask": torch.ones_like(tokens).tolist()})
    with tempfile.TemporaryDirectory() as work:
        oneshot(
            model=str(base_models.save(Path(work) / "base", checkpoint.kind, checkpoint.layers)),
            dataset=dataset,
            recipe=checkpoint.modifier(**settings),
            num_calibration_samples=len(tokens),
            max_seq_length=tokens.shape[1],
            shuffle_calibration_samples=False,
            output_dir=str(Path(work) / "made"),
        )
        folder = recording.keep(Path(work) / "made", name)
    tensors = reference.read(folder)
    definition = reference.load(folder, reference.plain(tensors, dequantize))
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    quantizers = input_quantizers(config, tensors)
    extra = {found: reference.logits(definition, quantizer) for found, quantizer in quantizers.items()}
    own_is = "logits_quantized_activations" if quantizers else "logits"
    if config["kv_cache_scheme"]:
        own_is += "_and_cache"
        scales = [[tensors[f"model.layers.{i}.self_attn.{x}_scale"].item() for x in "kv"] for i in range(checkpoint.layers)]
        extra["logits_fp8_cache"] = reference.logits(definition, cache_scales=scales)
        extra[own_is] = reference.logits(definition, quantizers["logits_quantized_activations"], scales)
    try:
        own = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        for parameter in own.parameters():
            if parameter.dtype == torch.bfloat16:  # the experts' weights, dequantized
                parameter.data = parameter.data.float()
        own_logits = {own_is: reference.logits(own)}
        own_path = "AutoModelForCausalLM.from_pretrained(dtype=float32) with compressed-tensors"
        if "moe" in name:
            own_path += "; there the experts' weights are rounded to bfloat16, and their inputs are not quantized"
    except RuntimeError:
        own_logits, own_path = {}, "none: transformers' loader fails on the zero points of experts"
    if "logits_activations_to_127" in extra:
        extra["logits_own_activations"] = own_logits.pop(own_is)
    recording.record(
        folder,
        tool="llm-compressor",
        packages=("llmcompressor", "compressed-tensors", "transformers", "torch"),
        has=checkpoint.has,
        settings={"modifier": checkpoint.modifier.__name__, **settings},
        dequantize=dequantize,
        base=base_models.build(checkpoint.kind, checkpoint.layers),
        own=own_logits,
        own_path=own_path,
        extra={found: (values, HOW[found]) for found, values in extra.items()},
    )


if __name__ == "__main__":
    for wanted in recording.wanted(list(CHECKPOINTS)):
        make(wanted)
