"""Checkpoints of an older llm-compressor: act-order with ``weight_g_idx``, and Mixtral under the names of its hub checkpoints.

    python3.11 -m venv env
    env/bin/pip install torch==2.13.0 loguru==0.7.3 pyyaml numpy==2.4.2 requests tqdm transformers==4.57.6 "datasets<5.1" \
        accelerate==1.15.0 nvidia-ml-py pillow compressed-tensors==0.14.0.1
    env/bin/pip install --no-deps llmcompressor==0.10.0.4 auto-round==0.10.2    # asks for torch<=2.10, and works with this one
    env/bin/python tests/checkpoints/make_llm_compressor_g_idx.py [NAME ...]

A torch without a GPU does.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import base_models
import numpy as np
import recording
import reference
import torch

recording.offline()

from compressed_tensors.compressors import PackedQuantizationCompressor  # noqa: E402
from compressed_tensors.quantization import QuantizationArgs  # noqa: E402
from datasets import Dataset  # noqa: E402
from llmcompressor import oneshot  # noqa: E402
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier  # noqa: E402

PLAIN_ROUTER = ["lm_head", "re:.*block_sparse_moe\\.gate$"]
GROUPS_OF_32 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "actorder": "group"}
# name -> what it has, base model, modifier, the modifier's settings
CHECKPOINTS: dict[str, tuple[str, str, type, dict[str, Any]]] = {
    "ct_g_idx": (
        "4 bits, symmetric, group 32, actorder=group: weight_g_idx",
        "llama",
        GPTQModifier,
        {"config_groups": {"group_0": {"targets": ["Linear"], "weights": {**GROUPS_OF_32, "symmetric": True}}}},
    ),
    "ct_g_idx_asym": (
        "4 bits, asymmetric, group 32, actorder=group: weight_g_idx",
        "llama",
        GPTQModifier,
        {"config_groups": {"group_0": {"targets": ["Linear"], "weights": {**GROUPS_OF_32, "symmetric": False}}}},
    ),
    "ct_mixtral_w4a16": (
        "Mixtral: experts and attention in 4 bits, symmetric, group 128; router plain",
        "mixtral",
        QuantizationModifier,
        {"targets": "Linear", "scheme": "W4A16", "ignore": PLAIN_ROUTER},
    ),
}


def dequantize(name: str, module: reference.Module) -> np.ndarray | None:
    return reference.compressed_tensors(module) if "weight_scale" in module else None


def own_dequantizer(folder: Path) -> Callable[[str, reference.Module], np.ndarray | None]:
    """By the tool: its whole loader does not run on a CPU with this torch."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    args = QuantizationArgs(**config["config_groups"]["group_0"]["weights"])

    def decompress(name: str, module: reference.Module) -> np.ndarray | None:
        if "weight_packed" not in module:
            return None
        data = {leaf: torch.from_numpy(tensor) for leaf, tensor in module.items()}
        data["weight_scale"] = data["weight_scale"].float()
        return PackedQuantizationCompressor().decompress_weight(data, args).double().numpy()

    return decompress


def make(name: str) -> None:
    has, kind, modifier, settings = CHECKPOINTS[name]
    settings = {"ignore": ["lm_head"], **settings}
    tokens = base_models.calibration()
    dataset = Dataset.from_dict({"input_ids": tokens.tolist(), "attention_mask": torch.ones_like(tokens).tolist()})
    with tempfile.TemporaryDirectory() as work:
        oneshot(
            model=str(base_models.save(Path(work) / "base", kind)),
            dataset=dataset,
            recipe=modifier(**settings),
            num_calibration_samples=len(tokens),
            max_seq_length=tokens.shape[1],
            shuffle_calibration_samples=False,
            pipeline="sequential",  # the others want a GPU
            output_dir=str(Path(work) / "made"),
        )
        folder = recording.keep(Path(work) / "made", name)
    own = reference.load(folder, reference.plain(reference.read(folder), own_dequantizer(folder)))
    recording.record(
        folder,
        tool="llm-compressor",
        packages=("llmcompressor", "compressed-tensors", "transformers", "torch"),
        has=has,
        settings={"modifier": modifier.__name__, **settings},
        dequantize=dequantize,
        base=base_models.build(kind),
        own={"logits": reference.logits(own)},
        own_path="compressed-tensors' PackedQuantizationCompressor.decompress_weight with float32 scales",
    )


if __name__ == "__main__":
    for wanted in recording.wanted(list(CHECKPOINTS)):
        make(wanted)
