"""Stand-in for the part of FlashInfer that is not attention: norms, activations, rotary, a GEMM, sampling."""

from __future__ import annotations

import torch

from .stand_ins import HALVES, module, require


def rows_2d(x: torch.Tensor) -> None:
    require(x.dim() == 2 and x.stride(-1) == 1 and x.dtype in HALVES and x.shape[0] > 0, "rows [T, H] of fp16 or bf16")


def normalized(x: torch.Tensor, factor: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * factor


def rmsnorm(input, weight, eps=1e-6, out=None, enable_pdl=None):  # type: ignore[no-untyped-def]
    rows_2d(input)
    require(weight.dtype == input.dtype, "weights of the input's dtype")
    out = torch.empty_like(input) if out is None else out
    return out.copy_(normalized(input.float(), weight.float(), eps))


def gemma_rmsnorm(input, weight, eps=1e-6, out=None, enable_pdl=None):  # type: ignore[no-untyped-def]
    rows_2d(input)
    require(weight.dtype == input.dtype, "weights of the input's dtype")
    out = torch.empty_like(input) if out is None else out
    return out.copy_(normalized(input.float(), weight.float() + 1, eps))


def _add_and_norm(input: torch.Tensor, residual: torch.Tensor, factor: torch.Tensor, eps: float) -> None:
    rows_2d(input)
    rows_2d(residual)
    total = input.float() + residual.float()  # kept unrounded for the norm
    residual.copy_(total)
    input.copy_(normalized(total, factor, eps))


def fused_add_rmsnorm(input, residual, weight, eps=1e-6, enable_pdl=None):  # type: ignore[no-untyped-def]
    _add_and_norm(input, residual, weight.float(), eps)


def gemma_fused_add_rmsnorm(input, residual, weight, eps=1e-6, enable_pdl=None):  # type: ignore[no-untyped-def]
    _add_and_norm(input, residual, weight.float() + 1, eps)


def _halves(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    require(x.is_contiguous() and x.dtype in HALVES and x.shape[0] > 0, "contiguous fp16 or bf16, some rows")
    require(x.shape[-1] // 2 * x.itemsize % 16 == 0, "The pointers must be multiple of 16 bytes.")
    gate, up = x.float().chunk(2, dim=-1)
    return gate, up


def silu_and_mul(input, out=None, enable_pdl=None):  # type: ignore[no-untyped-def]
    gate, up = _halves(input)
    return (torch.nn.functional.silu(gate) * up).to(input.dtype)


def gelu_tanh_and_mul(input, out=None, enable_pdl=None):  # type: ignore[no-untyped-def]
    gate, up = _halves(input)
    return (torch.nn.functional.gelu(gate, approximate="tanh") * up).to(input.dtype)


def gelu_and_mul(input, out=None, enable_pdl=None):  # type: ignore[no-untyped-def]
    gate, up = _halves(input)
    return (torch.nn.functional.gelu(gate) * up).to(input.dtype)


def apply_rope_with_cos_sin_cache_inplace(positions, query, key, head_size, cos_sin_cache, is_neox=True):  # type: ignore[no-untyped-def]
    require(cos_sin_cache.dtype == torch.float32 and cos_sin_cache.is_contiguous(), "cos_sin_cache should be float32")
    rot_dim = cos_sin_cache.shape[1]
    require(rot_dim % 32 == 0 and rot_dim <= head_size and query.dtype in HALVES and len(positions) > 0, "sizes and dtypes")
    cos, sin = cos_sin_cache[positions][:, None].chunk(2, dim=-1)
    for x in (query, key):
        heads = x.view(x.shape[0], -1, head_size)[..., :rot_dim]
        first, second = heads.chunk(2, dim=-1) if is_neox else (heads[..., ::2], heads[..., 1::2])
        a, b = first.float(), second.float()
        first.copy_(a * cos - b * sin)
        second.copy_(b * cos + a * sin)


def bmm_fp8(A, B, A_scale, B_scale, dtype, out=None, backend="cublas"):  # type: ignore[no-untyped-def]
    require(A.dim() == B.dim() == 3 and B.stride(1) == 1 and A.stride(2) == 1, "A [b, m, k], B [b, k, n] column major")
    require(A.shape[2] % 16 == B.shape[2] % 16 == 0 and A_scale.numel() == B_scale.numel() == 1, "multiples of 16, scalars")
    return (A.double() @ B.double() * A_scale.double() * B_scale.double()).to(dtype)


def top_k_top_p_sampling_from_logits(  # type: ignore[no-untyped-def]
    logits,
    top_k,
    top_p,
    indices=None,
    filter_apply_order="top_k_first",
    deterministic=True,
    generator=None,
    check_nan=False,
    seed=None,
    offset=None,
):
    require(logits.dtype == torch.float32 and logits.is_contiguous() and filter_apply_order == "top_k_first", "f32 logits")
    require(top_k.dtype == torch.int32 and bool((top_k >= 1).all()) and bool((top_k <= logits.shape[1]).all()), "top_k")
    for number in (seed, offset):
        require(number.dtype == torch.int64 and number.shape == (1,), "seed and offset: int64 [1]")
    ranked = logits.sort(dim=-1, descending=True).values
    kept = logits >= ranked.gather(1, top_k.long()[:, None] - 1)
    probability, order = torch.softmax(logits.masked_fill(~kept, -torch.inf), dim=-1).sort(dim=-1, descending=True)
    probability[probability.cumsum(-1) - probability >= top_p[:, None]] = 0
    draw = torch.multinomial(probability, 1, generator=torch.Generator().manual_seed(int(seed) + int(offset)))
    return order.gather(1, draw)[:, 0].int()


sampling = module("flashinfer.sampling", top_k_top_p_sampling_from_logits)
STEPS = (
    rmsnorm,
    gemma_rmsnorm,
    fused_add_rmsnorm,
    gemma_fused_add_rmsnorm,
    silu_and_mul,
    gelu_tanh_and_mul,
    gelu_and_mul,
    apply_rope_with_cos_sin_cache_inplace,
    bmm_fp8,
    sampling,
)
