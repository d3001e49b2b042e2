"""Attention of a UNet by ``paged_attention_prefill``: dense keys and values, as the library's layers give them, are pages."""

from __future__ import annotations

from typing import Any

import torch

from ...plan import AttentionMeta, BoundKernel, LayerKV


class KernelAttention:
    """What the library calls an attention processor; the layers of a UNet whose attention has the same shape share one."""

    def __init__(self, kernel: BoundKernel, page_size: int, device: torch.device) -> None:
        self._kernel, self._page_size, self._device = kernel, page_size, device
        self._metas: dict[tuple[int, int, int], AttentionMeta] = {}

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """hidden_states [B, T, C] attend to themselves, or to encoder_hidden_states [B, L, E] -> [B, T, C]. ``attn`` is the
        library's layer, which has the projections."""
        if attention_mask is not None:
            raise ValueError(
                f"this UNet cannot run: {type(attn).__name__} of diffusers masks keys, which our attention has no word for"
            )
        seen = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        projected = (attn.to_q(hidden_states), attn.to_k(seen), attn.to_v(seen))
        q, k, v = (x.unflatten(-1, (attn.heads, -1)) for x in projected)
        kv = LayerKV(self._paged(k), self._paged(v))
        out = self._kernel(q.flatten(0, 1), kv, self._meta(q.shape[0], q.shape[1], k.shape[1]))
        return attn.to_out[0](out.view(*q.shape[:2], -1))

    def forget(self) -> None:
        """Once an image is made: the next may have another size."""
        self._metas.clear()

    def _paged(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, L, H, D] as pages [B * ceil(L / page_size), page_size, H, D], without a copy where L fills them."""
        if missing := -x.shape[1] % self._page_size:
            x = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, missing))
        return x.reshape(-1, self._page_size, *x.shape[2:])

    def _meta(self, num_rows: int, num_queries: int, num_keys: int) -> AttentionMeta:
        """Of each row of the batch as a request. The steps of an image, and the layers of one resolution, have the same one."""
        key = (num_rows, num_queries, num_keys)
        if (meta := self._metas.get(key)) is None:
            int32: dict[str, Any] = {"dtype": torch.int32, "device": self._device}
            ends = torch.arange(num_rows + 1, **int32) * num_queries
            lengths = torch.full((num_rows,), num_keys, **int32)
            pages = torch.arange(num_rows * -(-num_keys // self._page_size), **int32).view(num_rows, -1)
            meta = self._metas[key] = AttentionMeta(ends, lengths, pages, num_queries, num_keys)
            self._kernel.begin_step(meta)
        return meta
