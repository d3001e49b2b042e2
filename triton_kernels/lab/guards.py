"""Memory around tensors that nobody may touch, and values in fresh memory that show when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ..attention_meta import AttentionMeta, LayerKV
from ..lora_meta import LoraMeta
from ..state_meta import StateMeta

GUARD_BYTES = 4096
"""Before and after each block of memory. A multiple of every alignment that kernels are compiled for."""
_GUARD = 0xFF
"""All bits set is NaN in every float format, and -1 or the largest value in integers: reading a guard shows too."""


def surround(args: Mapping[str, Any]) -> dict[str, Any]:
    """The same arguments, each block of memory among them between two guards. Views of one block stay views of one block."""
    blocks: dict[int, torch.Tensor] = {}

    def move(value: Any) -> Any:
        if isinstance(value, AttentionMeta):
            return replace(value, cu_q=move(value.cu_q), seq_lens=move(value.seq_lens), block_table=move(value.block_table))
        if isinstance(value, StateMeta):
            return replace(value, cu_q=move(value.cu_q), slots=move(value.slots), is_first=move(value.is_first))
        if isinstance(value, LoraMeta):
            return replace(value, index=move(value.index))
        if isinstance(value, LayerKV):
            return LayerKV(*map(move, value))
        if not isinstance(value, torch.Tensor):
            return value
        storage = value.untyped_storage()
        key = storage.data_ptr()
        if key not in blocks:
            blocks[key] = _guarded_bytes(storage.nbytes(), value.device)
            content = torch.empty(0, dtype=torch.uint8, device=value.device).set_(storage)
            blocks[key][GUARD_BYTES : GUARD_BYTES + storage.nbytes()] = content
        return _view(blocks[key], value, int(value.storage_offset()))

    return {name: move(value) for name, value in args.items()}


class GuardedEmpty(TorchFunctionMode):
    """Inside, uninitialized tensors lie between guards and hold NaN (integers: their largest value), so that who reads what was
    not written, or writes beside it, is found out.

    Deterministic mode would fill them too, but also changes which algorithms torch uses.
    """

    def __init__(self) -> None:
        super().__init__()
        self._blocks: list[tuple[torch.Tensor, int]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func not in _UNINITIALIZED or out.is_meta or torch.compiler.is_compiling():  # what is traced has no memory yet
            return out
        num_bytes = out.untyped_storage().nbytes()
        block = _guarded_bytes(num_bytes, out.device)
        self._blocks.append((block, num_bytes))
        out = _view(block, out, 0)
        if out.is_floating_point():
            return out.fill_(float("nan"))
        return out.fill_(True if out.dtype == torch.bool else torch.iinfo(out.dtype).max)

    def was_crossed(self) -> bool:
        """Whether anything was written beside one of the tensors."""
        return any(
            bool((part != _GUARD).any())
            for block, num_bytes in self._blocks
            for part in (block[:GUARD_BYTES], block[GUARD_BYTES + num_bytes :])
        )


def _guarded_bytes(num_bytes: int, device: torch.device) -> torch.Tensor:
    whole = -(-num_bytes // 16) * 16 + 2 * GUARD_BYTES  # a whole number of elements of any dtype
    return torch.full((whole,), _GUARD, dtype=torch.uint8, device=device)


def _view(block: torch.Tensor, like: torch.Tensor, offset: int) -> torch.Tensor:
    return block.view(like.dtype).as_strided(like.shape, like.stride(), GUARD_BYTES // like.element_size() + offset)


_UNINITIALIZED = (torch.empty, torch.empty_like, torch.empty_strided, torch.Tensor.new_empty, torch.Tensor.new_empty_strided)
