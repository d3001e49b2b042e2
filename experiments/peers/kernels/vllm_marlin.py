"""``gemm_w4a16`` by Marlin as vLLM builds it (``torch.ops._C.marlin_gemm``).

Marlin (Frantar et al., arXiv 2408.11743) keeps weights in the order in which the registers of its matrix instructions want them and
streams them through shared memory in an asynchronous pipeline. Quantized values are repacked on the device, once; scales and zero
points are shuffled to match.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from triton_kernels.impl import NEVER_MET_ITS_LIBRARY, impl
from triton_kernels.spec import Spec

BITS, LANES = 4, 8


@impl("gemm_w4a16", "vllm_marlin", requires=("vllm",), unproven=NEVER_MET_ITS_LIBRARY, devices=("cuda",))
class Marlin:
    def __init__(self, spec: Spec, weights: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        import vllm._C_stable_libtorch  # noqa: F401  (registers torch.ops._C)
        from vllm.scalar_type import scalar_types

        qweight, scales, zeros, bias = (weights.get(name) for name in ("qweight", "scales", "zeros", "bias"))
        assert qweight is not None and scales is not None
        self._n, self._k = qweight.shape[0], qweight.shape[1] * LANES
        device = qweight.device
        self._none = torch.empty(0, dtype=torch.int32, device=device)
        self._weight = torch.ops._C.gptq_marlin_repack(qweight.T.contiguous(), self._none, self._k, self._n, BITS, False)
        grouped = scales.shape[1] > 1
        self._scales = (shuffle_groups if grouped else shuffle_channels)(scales.T.to(spec.dtype))
        self._zeros = self._none if zeros is None else pack_zeros(zeros.T)
        self._bias = None if bias is None else shuffle_channels(bias[None].to(spec.dtype))[0]
        self._type = (scalar_types.uint4b8 if zeros is None else scalar_types.uint4).id
        num_sms = torch.cuda.get_device_properties(device).multi_processor_count
        self._locks = torch.zeros(num_sms, dtype=torch.int32, device=device)
        self._perm = weights["perm"].long() if weights.get("perm") is not None else None

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        reasons = []
        if spec.arch != "sm_90":
            reasons.append(f"was adapted for sm_90, not for {spec.arch}")
        if spec.dtype not in (torch.float16, torch.bfloat16):
            reasons.append(f"takes float16 and bfloat16, not {spec.dtype}")
        group, in_features = spec.fact("group_size", 128), spec.fact("in_features", 128)
        if group not in (32, 64, 128, in_features):
            reasons.append(f"has groups of 32, 64 and 128 and whole channels, not of {group}")
        for name, multiple in (("in_features", 128), ("out_features", 64)):
            if spec.fact(name, multiple) % multiple:
                reasons.append(f"needs a multiple of {multiple} {name.replace('_', ' ')}, not {spec.fact(name)}")
        return reasons or _import_error()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous() if self._perm is None else x.index_select(1, self._perm)
        if x.shape[0] == 0:
            return x.new_empty(0, self._n)
        out: torch.Tensor = torch.ops._C.marlin_gemm(
            x,
            None,
            self._weight,
            self._bias,
            self._scales,
            None,
            None,
            self._zeros,
            self._none,
            self._none,
            self._locks,
            self._type,
            x.shape[0],
            self._n,
            self._k,
            True,
            False,
            True,
            False,
        )
        return out


def shuffle_groups(rows: torch.Tensor) -> torch.Tensor:
    """[G, N], one scale per group and channel: each 64 channels, seen as 8 x 8, transposed."""
    return rows.unflatten(1, (-1, 8, 8)).transpose(2, 3).flatten(1).contiguous()


def shuffle_channels(rows: torch.Tensor) -> torch.Tensor:
    """[1, N], one scale per channel: each 32 channels, seen as 4 x 4 pairs, transposed."""
    return rows.unflatten(1, (-1, 4, 4, 2)).transpose(2, 3).flatten(1).contiguous()


def pack_zeros(zeros: torch.Tensor) -> torch.Tensor:
    """uint8 [G, N] -> int32 [G, N/8]: shuffled as the scales, then the even channels of each eight before the odd ones."""
    lanes = shuffle_groups(zeros).unflatten(1, (-1, 4, 2)).transpose(2, 3).flatten(2).long()
    shifts = torch.arange(0, 32, BITS, device=zeros.device)
    return (lanes << shifts).sum(-1).to(torch.int32)


def _import_error() -> list[str]:
    try:
        import vllm._C_stable_libtorch
        import vllm.scalar_type  # noqa: F401
    except Exception as error:  # a broken library raises what it likes
        return [f"vLLM's kernels cannot be loaded: {type(error).__name__}: {error}"]
    return [] if hasattr(torch.ops._C, "marlin_gemm") else ["this vLLM has no torch.ops._C.marlin_gemm"]
