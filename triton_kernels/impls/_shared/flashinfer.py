"""What the adapters of FlashInfer (package ``flashinfer``, 0.6) share: its limits, and attention over pages by its wrappers.

A wrapper's plan cuts a batch into work and copies it to the device, so it reads the batch's lengths on the host: once per
step and KV group, then all layers run it. What the layers of a group share lies in ``meta.workspace``. The LSE is in base 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ...attention_meta import AttentionMeta, LayerKV
from ...spec import Spec

HALVES = (torch.float16, torch.bfloat16)
_KEY = "flashinfer"
_MIB = 1 << 20
_VECTOR = 8  # elements of 16 bits that its elementwise kernels read at once
_TENSOR_CORE_GROUP = 4  # query heads per KV head from which the library advises tensor cores for decode


def unsupported_arch(spec: Spec, least: int = 80) -> list[str]:
    """A reason where the arch is not sm_``least`` or later."""
    old = spec.arch.startswith("sm_") and int(spec.arch[3:]) < least
    return [f"needs sm_{least} or later, not {spec.arch}"] if old or spec.arch.startswith("gfx") else []


def unsupported_flashinfer(spec: Spec) -> list[str]:
    """Reasons that hold for every kernel of the library on activations."""
    reasons = unsupported_arch(spec)
    if spec.dtype not in HALVES:
        reasons.append(f"takes float16 and bfloat16, not {spec.dtype}")
    return reasons


class FlashInferGated:
    """A gated activation by the library's ``activate``, which takes contiguous rows whose halves are whole vectors."""

    unsupported = staticmethod(unsupported_flashinfer)
    activate: Callable[[torch.Tensor], torch.Tensor]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        width = x.shape[-1] // 2
        if x.numel() == 0:
            return x.new_empty(*x.shape[:-1], width)
        if width % _VECTOR == 0:
            return self.activate(x.contiguous())
        padded = torch.nn.functional.pad(x.unflatten(-1, (2, width)), (0, -width % _VECTOR)).flatten(-2)
        return self.activate(padded)[..., :width].contiguous()


class _Step:
    """A batch as the library wants it. Tensors lie on the host but ``indices`` and ``dead``.

    starts, ends  int32 [R+1]: borders of the requests' queries, and of their pages in ``indices`` int32
    last          int32 [R]: tokens in a request's last page, 0 without pages
    dead          bool [T]: rows of requests without tokens, None for none
    """

    def __init__(self, meta: AttentionMeta, page_size: int) -> None:
        device = meta.block_table.device
        self.starts, lengths = meta.cu_q.cpu(), meta.seq_lens.cpu()
        counts, num_pages = self.starts.diff(), (lengths + page_size - 1) // page_size
        self.ends = torch.nn.functional.pad(num_pages.cumsum(0, dtype=torch.int32), (1, 0))
        self.last = lengths - (num_pages - 1).clamp_min(0) * page_size
        req = torch.repeat_interleave(torch.arange(len(lengths)), num_pages)
        block = torch.arange(len(req)) - self.ends[req]
        self.indices = meta.block_table[req.to(device), block.to(device)]
        empty = lengths == 0
        self.dead = torch.repeat_interleave(empty, counts).to(device) if bool(empty.any()) else None
        self.uniform = bool((counts == 1).all())


class _Group:
    """What the layers of a KV group share: the workspace of all their wrappers, and those that are planned for this step."""

    def __init__(self, device: torch.device, workspace_bytes: int) -> None:
        self.buffer = torch.zeros(workspace_bytes, dtype=torch.uint8, device=device)  # the library wants zeros at first
        self.wrappers: dict[Any, Any] = {}
        self.begin()

    def begin(self) -> None:
        self.step: _Step | None = None
        self.planned: set[Any] = set()


class FlashInferAttention:
    """Both attention ops. ``single_queries`` lets steps with one query per request take the decode wrapper.

    backend        "auto", "fa2" or "fa3" (sm_90): the kernels of prefill
    workspace_mib  size of the library's workspace, per KV group
    """

    single_queries: bool

    def __init__(
        self, spec: Spec, weights: Mapping[str, torch.Tensor], params: Mapping[str, Any], *, backend: str, workspace_mib: int
    ) -> None:
        import flashinfer

        self.library, self.backend, self.workspace_bytes = flashinfer, backend, workspace_mib * _MIB
        window = params.get("window")
        self.causal: bool = params.get("causal", True)
        self.return_lse: bool = params.get("return_lse", False)
        self.keywords: dict[str, Any] = {
            "sm_scale": params["scale"],
            "window_left": -1 if window is None else window - 1,
            "logits_soft_cap": params.get("softcap") or 0.0,
        }

    @staticmethod
    def unsupported(spec: Spec) -> list[str]:
        reasons = unsupported_flashinfer(spec)
        kv_dtype = spec.fact("kv_dtype", spec.dtype)
        if kv_dtype != spec.dtype:
            reasons.append(f"reads a cache of the activations' dtype {spec.dtype}, not of {kv_dtype} with a scale per token")
        head_dim, value_dim = spec.fact("head_dim", 128), spec.fact("value_dim", 128)
        if head_dim not in (64, 128, 256):
            reasons.append(f"has kernels for head_dim 64, 128 and 256, not {head_dim}")
        if value_dim != head_dim:
            reasons.append(f"needs value_dim to be head_dim, not {value_dim} beside {head_dim}")
        if spec.fact("sinks"):
            reasons.append("its kernels of this arch have no attention sinks")
        if spec.fact("window") is not None and not spec.fact("causal", True):
            reasons.append("has windows behind a query only, and none ahead of it")
        if spec.fact("position_bias"):
            reasons.append("takes no table of position biases")
        if spec.fact("alibi"):
            reasons.append("computes ALiBi slopes itself and takes none")
        return reasons

    def begin_step(self, meta: AttentionMeta) -> None:
        """Forgets the last step; the first layer that is called plans for all with the same rule."""
        if _KEY in meta.workspace:
            meta.workspace[_KEY].begin()

    def __call__(self, q: torch.Tensor, kv: LayerKV, meta: AttentionMeta) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if _KEY not in meta.workspace:
            meta.workspace[_KEY] = _Group(q.device, self.workspace_bytes)
        group: _Group = meta.workspace[_KEY]
        step = group.step = group.step or _Step(meta, kv.page_size)
        result = self._wrapper(group, step, q, kv).run(q, (kv.k, kv.v), return_lse=self.return_lse)
        out, lse = result if self.return_lse else (result, None)
        if step.dead is not None:
            out.masked_fill_(step.dead[:, None, None], 0)
        if lse is None:
            return out
        lse = lse * math.log(2)
        return out, lse if step.dead is None else lse.masked_fill_(step.dead[:, None], -torch.inf)

    def _wrapper(self, group: _Group, step: _Step, q: torch.Tensor, kv: LayerKV) -> Any:
        """The wrapper for this layer's rule, planned for this step."""
        single = self.single_queries and step.uniform
        num_heads, num_kv_heads, head_dim = q.shape[1], kv.k.shape[2], q.shape[2]
        key = single, self.causal, num_heads, *self.keywords.values()
        if key not in group.wrappers:
            group.wrappers[key] = self._make(group, single, num_heads // num_kv_heads)
        wrapper = group.wrappers[key]
        if key not in group.planned:
            group.planned.add(key)
            pages = (step.ends, step.indices, step.last, num_heads, num_kv_heads, head_dim, kv.page_size)
            dtypes = {"q_data_type": q.dtype, "kv_data_type": kv.k.dtype}
            if single:
                wrapper.plan(*pages, **dtypes, **self.keywords)
            else:
                wrapper.plan(step.starts, *pages, causal=self.causal, **dtypes, **self.keywords)
        return wrapper

    def _make(self, group: _Group, single: bool, heads_per_kv_head: int) -> Any:
        if single:
            tensor_cores = heads_per_kv_head >= _TENSOR_CORE_GROUP
            return self.library.BatchDecodeWithPagedKVCacheWrapper(group.buffer, "NHD", use_tensor_cores=tensor_cores)
        return self.library.BatchPrefillWithPagedKVCacheWrapper(group.buffer, "NHD", backend=self.backend)
