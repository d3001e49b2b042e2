"""Every op, by name."""

from ..op import Op
from .activation import gelu_and_mul, silu_and_mul
from .attention import paged_attention_decode, paged_attention_prefill
from .embedding import embedding
from .fused import qk_norm_rotary_kv_write
from .gemm import gemm_fp8, gemm_int8, gemm_w4a16, gemm_w8a16
from .kv_cache import copy_blocks, kv_cache_write
from .linear import linear
from .lora import lora_expand, lora_shrink
from .merge import merge_attention
from .moe import moe_experts, moe_route
from .moe_align import moe_align
from .norm import layer_norm, rms_norm
from .penalties import apply_penalties
from .quantize import quantize_activation
from .rotary import rotary
from .sampling import gather_logprobs, sample
from .slot_mapping import slot_mapping
from .verify import verify_draft

OPS: dict[str, Op] = {
    op.name: op
    for op in (
        linear,
        embedding,
        rms_norm,
        layer_norm,
        rotary,
        silu_and_mul,
        gelu_and_mul,
        kv_cache_write,
        paged_attention_prefill,
        paged_attention_decode,
        moe_route,
        moe_experts,
        apply_penalties,
        sample,
        gather_logprobs,
        copy_blocks,
        gemm_w4a16,
        gemm_w8a16,
        gemm_int8,
        gemm_fp8,
        quantize_activation,
        merge_attention,
        moe_align,
        qk_norm_rotary_kv_write,
        slot_mapping,
        verify_draft,
        lora_shrink,
        lora_expand,
    )
}
