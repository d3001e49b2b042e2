"""The gated delta rule in Triton: prompts by chunks, short runs by the recurrence; which of them a request takes depends on its own
number of tokens alone, so that its bits do not depend on the batch.

Prompts (arXiv 2412.06464, section 3.3): within a chunk, every token's correction depends on those before it through a triangular
system. ``prepare_kernel``, a program per chunk and head, inverts it by substitution in f32 registers, and applies the inverse to
values and keys. ``scan_kernel``, a program per request, head and BLOCK_V values, then goes from chunk to chunk with its columns of
the state in f32 registers: four products, while tiles of the next chunk are under way. What lies between the two passes once
through memory: K + V + CHUNK numbers per token and head.

``recurrent_kernel`` goes from token to token: it reads the state once, writes it once, and is bound by that. Drafts to verify
go that way, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ...impl import Flags, impl
from ...ops.gated_delta import NORM_EPS
from ...spec import Spec
from ...state_meta import StateMeta
from .._shared.launch import Launch, cdiv, next_power_of_2
from ._kernels import prepare_kernel, recurrent_kernel, scan_kernel


class Constants(NamedTuple):
    """What a kernel is compiled for. GROUP: value heads of a key head; NUM_HEADS: of values; SLICE: of a key's BLOCK_K numbers, how
    many products take at a time."""

    NUM_HEADS: int
    GROUP: int
    K_DIM: int
    V_DIM: int
    BLOCK_K: int
    SLICE: int
    BLOCK_V: int
    CHUNK: int
    MAX_RECURRENT: int
    NORM_EPS: float
    INTERPRET: bool


@impl(
    "gated_delta_rule",
    "triton",
    priority=20,
    requires=("triton",),
    flags=Flags(batch_invariant=True),
    options={"chunk": 0, "block_v": 0, "num_warps": 0, "num_stages": 0, "max_recurrent": 8},
    tune_space={"chunk": (32, 64), "block_v": (16, 32, 64), "num_warps": (4, 8), "num_stages": (1, 2, 3)},
)
class GatedDeltaRuleTriton:
    """``chunk``, ``block_v``, ``num_warps``, ``num_stages``: of ``scan_kernel``, 0 follows dtype and arch. ``max_recurrent``: of
    the longest run that goes from token to token."""

    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any], **options: int) -> None:
        self.gates = weights["a_log"].float().contiguous(), weights["dt_bias"].float().contiguous()
        self.scale, self.interpret = params["scale"], spec.interpret
        usual = {"chunk": 64, "block_v": 32, "num_warps": 4, "num_stages": 3}
        if spec.dtype == torch.float32:  # no matrix instruction: needs registers
            usual = {"chunk": 16, "block_v": 16, "num_warps": 8, "num_stages": 2}
        elif spec.arch.startswith(("sm_8", "gfx")):  # whose matrix instructions have fewer rows
            usual |= {"chunk": 32, "block_v": 16}
        if spec.arch.startswith("gfx"):  # for which Triton 3.6 can compile no more
            usual["num_stages"] = 2
        # Without matrix instructions a thread holds whole rows of both factors.
        self.slice = 32 if spec.dtype == torch.float32 else 1024
        self.options = {name: options[name] or value for name, value in usual.items()}
        self.prepare_warps = 4 if self.options["chunk"] == 32 else 8
        self.max_recurrent = options["max_recurrent"]
        self.launches: dict[tuple[torch.Size, ...], tuple[Launch, ...]] = {}

    def _launches(self, k: torch.Size, v: torch.Size) -> tuple[Launch, ...]:
        """Of the three kernels, for heads of such numbers and sizes."""
        if (k, v) not in self.launches:
            of_scan = Constants(
                NUM_HEADS=v[0],
                GROUP=v[0] // k[0],
                K_DIM=k[1],
                V_DIM=v[1],
                BLOCK_K=(block_k := max(16, next_power_of_2(k[1]))),
                SLICE=min(block_k, self.slice),
                BLOCK_V=min(self.options["block_v"], max(16, next_power_of_2(v[1]))),
                CHUNK=self.options["chunk"],
                MAX_RECURRENT=self.max_recurrent,
                NORM_EPS=NORM_EPS,
                INTERPRET=self.interpret,
            )
            of_prepare = of_scan._replace(BLOCK_V=max(16, next_power_of_2(v[1])))
            layer = {"a_log_ptr": self.gates[0], "dt_bias_ptr": self.gates[1], "scale": self.scale}
            in_loop = {"num_warps": self.options["num_warps"], "num_stages": self.options["num_stages"]}
            self.launches[k, v] = (
                Launch(prepare_kernel, **layer, C=of_prepare, num_warps=self.prepare_warps, enable_fp_fusion=True),
                Launch(scan_kernel, C=of_scan, **in_loop, enable_fp_fusion=True),
                Launch(recurrent_kernel, **layer, C=of_scan, num_warps=4, enable_fp_fusion=True),
            )
        return self.launches[k, v]

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        state: torch.Tensor,
        meta: StateMeta,
    ) -> torch.Tensor:
        q, k, v = (x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous() for x in (q, k, v))
        a, b = (x if x.stride(1) == 1 else x.contiguous() for x in (a, b))
        (num_tokens, num_heads, v_dim), k_dim = v.shape, k.shape[2]
        out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
        prepare, scan, recurrent = self._launches(k.shape[1:], v.shape[1:])
        blocks = cdiv(v_dim, self.options["block_v"]), num_heads, meta.num_reqs
        slots = meta.cu_q, meta.slots
        inputs, strides = (q, k, v, a, b), (q.stride(0), k.stride(0), v.stride(0), a.stride(0), b.stride(0))
        recurrent(blocks, *inputs, state, out, *slots, meta.is_first, *strides, state.stride(0))
        if meta.max_q > self.max_recurrent:
            keys, values = k.new_empty(num_tokens, num_heads, k_dim), v.new_empty(v.shape)
            scores = k.new_empty(num_tokens, num_heads, self.options["chunk"])
            rows = k.new_empty(3, num_heads, num_tokens, dtype=torch.float32)
            num_chunks = num_tokens // self.options["chunk"] + meta.num_reqs
            chunks = keys, values, scores, rows
            prepare((num_chunks, num_heads), *inputs, *chunks, *slots, num_tokens, meta.num_reqs, *strides)
            own_strides = q.stride(0), k.stride(0), state.stride(0)
            scan(blocks, q, k, *chunks, state, out, *slots, meta.is_first, num_tokens, *own_strides)
        return out
