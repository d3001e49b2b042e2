"""The recurrence of Mamba 2 in Triton: prompts by chunks, short runs token by token; which of them a request takes depends on
its own number of tokens alone, so that its bits do not depend on the batch.

Prompts (arXiv 2405.21060, section 6): ``prepare_kernel``, a program per chunk and head, makes what the tokens of a chunk are to
each other. ``scan_kernel``, a program per request, head and BLOCK_P elements of the head, then goes from chunk to chunk with its
columns of the state in f32 registers: three products, while tiles of the next chunk are under way. What lies between the two
passes once through memory: CHUNK numbers per token and head.

``recurrent_kernel`` goes from token to token: it reads the state once, writes it once, and is bound by that. Drafts to verify go
that way, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ...impl import Flags, impl
from ...spec import Spec
from ...state_meta import StateMeta
from .._shared.launch import Launch, cdiv, next_power_of_2
from ._kernels import prepare_kernel, recurrent_kernel, scan_kernel


class Constants(NamedTuple):
    """What a kernel is compiled for. GROUP: heads that share a group."""

    NUM_HEADS: int
    GROUP: int
    HEAD_DIM: int
    STATE_SIZE: int
    BLOCK_P: int
    BLOCK_N: int
    CHUNK: int
    MAX_RECURRENT: int
    INTERPRET: bool


@impl(
    "ssd_scan",
    "triton",
    priority=20,
    requires=("triton",),
    flags=Flags(batch_invariant=True),
    options={"chunk": 0, "block_p": 0, "num_warps": 0, "num_stages": 0, "max_recurrent": 8},
    tune_space={"chunk": (32, 64, 128), "block_p": (16, 32, 64), "num_warps": (4, 8), "num_stages": (1, 2, 3)},
)
class SsdScanTriton:
    """``chunk``, ``block_p``, ``num_warps``, ``num_stages``: of ``scan_kernel``, 0 follows dtype and arch. ``max_recurrent``: of
    the longest run that goes from token to token."""

    def __init__(self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any], **options: int) -> None:
        self.steps = {f"{name}_ptr": weights[name].float().contiguous() for name in ("a_log", "dt_bias")}
        self.steps |= {"dt_min": params.get("dt_min", 0.0), "dt_max": params.get("dt_max", float("inf"))}
        self.skip, self.interpret = weights["d"].float().contiguous(), spec.interpret
        usual = {"chunk": 64, "block_p": 32, "num_warps": 4, "num_stages": 3}
        if spec.dtype == torch.float32:  # no matrix instruction: needs registers
            usual = {"chunk": 16, "block_p": 16, "num_warps": 8, "num_stages": 2}
        elif spec.arch.startswith("sm_8"):  # whose matrix instructions have fewer rows
            usual |= {"chunk": 32}
        elif spec.arch.startswith("gfx"):  # as there; masks of rows take scalar registers; Triton 3.6 can compile no more stages
            usual |= {"chunk": 32, "block_p": 16, "num_warps": 8, "num_stages": 2}
        self.options = {name: options[name] or value for name, value in usual.items()}
        self.max_recurrent = options["max_recurrent"]
        self.launches: dict[tuple[torch.Size, torch.Size], tuple[Launch, ...]] = {}

    def _launches(self, x: torch.Size, b: torch.Size) -> tuple[Launch, ...]:
        """Of the three kernels, for heads and groups of such numbers and sizes."""
        if (x, b) not in self.launches:
            constants = Constants(
                NUM_HEADS=x[0],
                GROUP=x[0] // b[0],
                HEAD_DIM=x[1],
                STATE_SIZE=b[1],
                BLOCK_P=min(self.options["block_p"], max(16, next_power_of_2(x[1]))),
                BLOCK_N=max(16, next_power_of_2(b[1])),
                CHUNK=self.options["chunk"],
                MAX_RECURRENT=self.max_recurrent,
                INTERPRET=self.interpret,
            )
            in_loop = {"num_warps": self.options["num_warps"], "num_stages": self.options["num_stages"]}
            self.launches[x, b] = (
                Launch(prepare_kernel, **self.steps, C=constants, num_warps=4, enable_fp_fusion=True),
                Launch(scan_kernel, d_ptr=self.skip, C=constants, **in_loop, enable_fp_fusion=True),
                Launch(recurrent_kernel, **self.steps, d_ptr=self.skip, C=constants, num_warps=4, enable_fp_fusion=True),
            )
        return self.launches[x, b]

    def __call__(
        self, x: torch.Tensor, dt: torch.Tensor, b: torch.Tensor, c: torch.Tensor, state: torch.Tensor, meta: StateMeta
    ) -> torch.Tensor:
        x, b, c = (rows if rows.stride()[1:] == (rows.shape[2], 1) else rows.contiguous() for rows in (x, b, c))
        dt = dt if dt.stride(1) == 1 else dt.contiguous()
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        (num_tokens, num_heads, head_dim), chunk = x.shape, self.options["chunk"]
        prepare, scan, recurrent = self._launches(x.shape[1:], b.shape[1:])
        blocks = cdiv(head_dim, self.options["block_p"]), num_heads, meta.num_reqs
        slots, strides = (meta.cu_q, meta.slots), (x.stride(0), dt.stride(0), b.stride(0), c.stride(0))
        recurrent(blocks, x, dt, b, c, state, out, *slots, meta.is_first, *strides, state.stride(0))
        if meta.max_q > self.max_recurrent:
            scores = x.new_empty(num_tokens, num_heads, chunk)
            rows = x.new_empty(num_heads, 3, num_tokens, dtype=torch.float32)
            num_chunks = num_tokens // chunk + meta.num_reqs
            prepare((num_chunks, num_heads), dt, b, c, scores, rows, *slots, num_tokens, meta.num_reqs, *strides[1:])
            own_strides = x.stride(0), b.stride(0), c.stride(0), state.stride(0)
            scan(blocks, x, b, c, scores, rows, state, out, *slots, meta.is_first, num_tokens, *own_strides)
        return out
