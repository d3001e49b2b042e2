"""``moe_experts`` by vLLM's Triton kernel (``fused_moe_kernel``), in the activations' dtype and in float8 with scales of blocks.

A program multiplies a block of one expert's tokens with a block of its rows. The two products are two launches; alignment,
activation and the sum of a token's experts are vLLM's compiled ops. Tiles are those that vLLM ships for the device and the shape,
else its defaults, unless options name them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from experiments.peers.kernels._vllm_python import MOE, import_error, load
from triton_kernels.impl import NEVER_MET_ITS_LIBRARY, impl
from triton_kernels.spec import Spec

BLOCK = 128
OPTIONS = ("block_m", "block_n", "block_k", "group_m", "num_warps", "num_stages")


@impl(
    "moe_experts",
    "vllm_triton",
    requires=("triton",),
    devices=("cuda",),
    options=dict.fromkeys(OPTIONS, 0),
    unproven=NEVER_MET_ITS_LIBRARY,
)
class FusedMoe:
    """Options of 0 are vLLM's choice."""

    def __init__(self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any], **options: int) -> None:
        self._weights, self._library = weights, load(MOE)
        self._blocks = [BLOCK, BLOCK] if spec.fact("scheme") == "fp8_block" else None
        self._options = {_vllm_name(name): value for name, value in options.items() if value}

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        reasons = []
        if spec.arch != "sm_90":
            reasons.append(f"was adapted for sm_90, not for {spec.arch}")
        if spec.fact("scheme", "float") not in ("float", "fp8_block"):
            reasons.append(f"is adapted for weights of the activations' dtype and for fp8_block, not for {spec.fact('scheme')}")
        if spec.fact("expert_start", 0):
            reasons.append("is adapted for all experts on one device")
        return reasons or import_error(MOE) or _lacking_ops()

    def config(self, num_tokens: int, top_k: int) -> dict[str, int]:
        """vLLM's tile for a call, with the options in place of its values."""
        num_experts, hidden, inner = self._weights["w2"].shape
        dtype, blocks = ("fp8_w8a8", (BLOCK, BLOCK)) if self._blocks else (None, (0, 0))
        shipped = self._library.get_moe_configs(num_experts, inner, dtype, *blocks)
        if shipped:
            config = shipped[min(shipped, key=lambda known: abs(known - num_tokens))]
        else:
            config = self._library.get_default_config(num_tokens, num_experts, inner, hidden, top_k, dtype, self._blocks)
        return {**config, **self._options}

    def __call__(self, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        (num_tokens, hidden), top_k = x.shape, ids.shape[1]
        num_experts, _, inner = self._weights["w2"].shape
        config = self.config(num_tokens, top_k)
        aligned = _align(ids, config["BLOCK_SIZE_M"], num_experts)
        gate_up = x.new_empty(num_tokens, top_k, 2 * inner)
        activated, results = x.new_empty(num_tokens * top_k, inner), x.new_empty(num_tokens, top_k, hidden)
        self._multiply(x, "w13", gate_up, None, aligned, top_k, config)
        _vllm_op("_C", "silu_and_mul", activated, gate_up.view(-1, 2 * inner))
        self._multiply(activated, "w2", results, weights, aligned, 1, config)
        out = torch.empty_like(x)
        _vllm_op("_moe_C", "moe_sum", results, out)
        return out

    def _multiply(
        self,
        x: torch.Tensor,
        name: str,
        out: torch.Tensor,
        router: torch.Tensor | None,
        aligned: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        top_k: int,
        config: dict[str, int],
    ) -> None:
        import triton.language as tl

        values, scales = _quantize(x) if self._blocks else (x, None)
        self._library.invoke_fused_moe_triton_kernel(
            values,
            self._weights[name],
            out,
            scales,
            self._weights.get(f"{name}_scale"),
            router,
            *aligned,
            router is not None,
            top_k,
            config,
            compute_type={torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}.get(x.dtype, tl.float32),
            use_fp8_w8a8=self._blocks is not None,
            use_int8_w8a8=False,
            use_int8_w8a16=False,
            use_int4_w4a16=False,
            per_channel_quant=False,
            block_shape=self._blocks,
        )


def _vllm_name(option: str) -> str:
    return {"group_m": "GROUP_SIZE_M"}.get(option, option.upper().replace("BLOCK", "BLOCK_SIZE") if "block" in option else option)


def _align(ids: torch.Tensor, block_m: int, num_experts: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Choices sorted by expert and padded to blocks, the expert of each block, and their number."""
    padded = min(ids.numel() + num_experts * (block_m - 1), ids.numel() * block_m)
    aligned = [torch.empty(size, dtype=torch.int32, device=ids.device) for size in (padded, -(-padded // block_m), 1)]
    _vllm_op("_moe_C", "moe_align_block_size", ids, num_experts, block_m, *aligned, None)
    return aligned[0], aligned[1], aligned[2]


def _quantize(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float8 values [T, K] and scales f32 [T, K/128] of x [T, K]."""
    values = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    scales = torch.empty(x.shape[0], x.shape[1] // BLOCK, dtype=torch.float32, device=x.device)
    most = torch.finfo(values.dtype).max
    _vllm_op("_C", "per_token_group_fp8_quant", x, values, scales, BLOCK, 1e-10, -most, most, False, False, False)
    return values, scales


def _vllm_op(library: str, name: str, *args: Any) -> None:
    """One of vLLM's compiled ops. Tensors on the CPU are those of kernels that are compiled, not run: nothing reads them."""
    if any(isinstance(arg, torch.Tensor) and arg.is_cuda for arg in args):
        getattr(getattr(torch.ops, library), name)(*args)


def _lacking_ops() -> list[str]:
    if not torch.cuda.is_available():
        return []
    try:
        import vllm._C_stable_libtorch
        import vllm._moe_C_stable_libtorch  # noqa: F401
    except Exception as error:  # a broken library raises what it likes
        return [f"vLLM's compiled ops cannot be loaded: {type(error).__name__}: {error}"]
    return []
