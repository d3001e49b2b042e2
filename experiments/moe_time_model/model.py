"""The time of vLLM's fused experts: two launches of its Triton kernel, and the small kernels around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from experiments.moe_time_model.routing import expert_counts
from triton_kernels.devices import DEVICE_MODELS
from triton_kernels.lab.time_model import MMA_SYNC, Constants, Work, estimate

DEVICE = DEVICE_MODELS["h200"]
TILE = ["dtype", "block_m", "block_n", "block_k", "num_warps", "num_stages"]
SHAPE = ["dtype", "num_experts", "num_ranks", "top_k", "hidden", "inner"]


@dataclass(frozen=True)
class Routed:
    """Means over the draws. active: experts with a token; blocks: of rows, of the experts here and of others; pairs: of a token and
    an expert here."""

    active: float
    blocks: float
    foreign_blocks: float
    pairs: float


@cache
def routed(distribution: str, num_tokens: int, num_experts: int, top_k: int, num_ranks: int, block_m: int) -> Routed:
    draws = np.stack(expert_counts(distribution, num_tokens, num_experts, top_k, num_ranks))
    here, others = np.split(draws, [num_experts // num_ranks], axis=1)

    def mean(values: Any) -> float:
        return float(values.sum(1).mean())

    return Routed(mean(here > 0), mean(-(-here // block_m)), mean(-(-others // block_m)), mean(here))


def with_routing(points: pd.DataFrame) -> pd.DataFrame:
    """Points with the columns of ``Routed``."""
    keys = points[["distribution", "num_tokens", "num_experts", "top_k", "num_ranks", "block_m"]]
    found = [vars(routed(*key)) for key in keys.itertuples(index=False)]
    return points.join(pd.DataFrame(found, index=points.index))


def seconds(points: pd.DataFrame, constants: Constants) -> np.ndarray:
    """The predicted times of points (with routing, and with the figures of their tiles)."""
    p = {str(name): points[name].to_numpy() for name in points}
    fp8 = p["dtype"] == "fp8"
    gate_up = _gemm(p, 2 * p["inner"], p["hidden"], p["pairs"] / p["top_k"], constants)
    down = _gemm(p, p["hidden"], p["inner"], p["pairs"], constants)
    # Align, activation and sum; quantization of tokens and of hidden states. Bytes are those of activations in bfloat16.
    choices = p["num_tokens"] * p["top_k"]
    moved = 6 * choices * p["inner"] + 2 * (choices + p["num_tokens"]) * p["hidden"]
    moved = moved + fp8 * 3 * (p["num_tokens"] * p["hidden"] + choices * p["inner"])
    launches = 4 + 2 * fp8
    result: np.ndarray = gate_up + down + launches * constants.launch_s + moved / (constants.memory * DEVICE.copy_bytes_s)
    return result


def _gemm(
    p: Mapping[str, np.ndarray], rows: np.ndarray, columns: np.ndarray, tokens: np.ndarray, constants: Constants
) -> np.ndarray:
    """One product with weights [experts, rows, columns]. Blocks of experts that live elsewhere write zeros."""
    fp8 = p["dtype"] == "fp8"
    size = np.where(fp8, 1, 2)
    moved = size * columns * (p["active"] * rows + tokens) + 2 * rows * (p["pairs"] + p["foreign_blocks"] * p["block_m"])
    work = Work(
        programs=p["blocks"] * np.ceil(rows / p["block_n"]),
        turns=np.ceil(columns / p["block_k"]),
        per_sm=p["programs_per_sm"],
        flops=p["tensor_flops"] / np.where(p["matrix"] == "HMMA", MMA_SYNC, 1.0),
        bytes=p["loaded_bytes"],
        issues=p["instructions"] * p["num_warps"],
        ahead=np.maximum(p["buffers"] - 1, 1),
        peak=np.where(fp8, DEVICE.flops_s["fp8"], DEVICE.flops_s["bf16"]),
        tensor=np.where(fp8, constants.tensor_fp8, constants.tensor),
        memory_bytes=moved,
    )
    return np.asarray(estimate(work, DEVICE, constants).total)
