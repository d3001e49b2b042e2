"""``rotary`` on views: heads as [T, H, 2, rot_dim / 2], so that both pairing styles are one formula.

Queries and keys that lie side by side, as the slices of a fused projection do, are rotated together: half the calls,
which is what a decode step on a CPU waits for.
"""

from __future__ import annotations

import torch

from ...impl import Flags, impl


@impl("rotary", "torch", priority=10, flags=Flags(cpu_graph=True))
def rotary_torch(q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor, style: str = "neox") -> None:
    half = cos_sin.shape[1] // 2
    cos, sin = cos_sin.index_select(0, positions)[:, None, :].split(half, dim=-1)
    for heads in _side_by_side(q, k) or (q, k):
        rotated = heads[..., : 2 * half]
        pairs = rotated.unflatten(-1, (2, half)) if style == "neox" else rotated.unflatten(-1, (half, 2)).mT
        first, second = pairs.unbind(-2)
        turned = pairs * cos[:, :, None]
        turned[..., 0, :].addcmul_(second, sin, value=-1)
        turned[..., 1, :].addcmul_(first, sin)
        pairs.copy_(turned)


def _side_by_side(q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor] | None:
    """One view [T, Hq + Hk, D] over both, if the first key head follows the last query head in the same memory."""
    adjacent = (
        q.stride() == k.stride()
        and k.data_ptr() == q.data_ptr() + q.shape[1] * q.stride(1) * q.element_size()
        and k.untyped_storage().data_ptr() == q.untyped_storage().data_ptr()
    )
    if not adjacent:
        return None
    return (q.as_strided((q.shape[0], q.shape[1] + k.shape[1], q.shape[2]), q.stride()),)
