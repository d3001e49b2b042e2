"""The references, the oracles of everything else, against code that we did not write."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb
from transformers.models.mixtral.modeling_mixtral import MixtralConfig, MixtralSparseMoeBlock

from triton_kernels.cases.attention import DECODE_CASES, PREFILL_CASES
from triton_kernels.lab.calls import make_args
from triton_kernels.op import Case
from triton_kernels.ops import OPS

CPU = torch.device("cpu")


@pytest.mark.parametrize("case", [c for c in (*PREFILL_CASES, *DECODE_CASES) if "bench" not in c.tags], ids=lambda c: c.name)
def test_attention_is_dense_attention_on_the_gathered_cache(case: Case) -> None:
    op = OPS["paged_attention_prefill" if case in PREFILL_CASES else "paged_attention_decode"]
    args = make_args(op, case, torch.float64, CPU)
    result = op.reference(**args)
    out = result[0] if args["return_lse"] else result
    q, kv, meta = args["q"], args["kv"], args["meta"]
    for r in range(meta.num_reqs):
        rows, length = slice(int(meta.cu_q[r]), int(meta.cu_q[r + 1])), int(meta.seq_lens[r])
        num_queries = rows.stop - rows.start
        if not num_queries or not length:
            assert not out[rows].any()
            continue
        pairs = ((kv.k, kv.k_scale), (kv.v, kv.v_scale))
        caches = [c if scale is None else c.double() * scale[..., None] for c, scale in pairs]
        keys, values = (c[meta.block_table[r].long()].flatten(0, 1)[:length].transpose(0, 1) for c in caches)
        group = q.shape[1] // keys.shape[0]
        scores = torch.stack([q[rows, h] @ keys[h // group].T for h in range(q.shape[1])]) * args["scale"]
        if args["softcap"]:
            scores = (scores / args["softcap"]).tanh() * args["softcap"]
        visible = torch.ones(num_queries, length, dtype=torch.bool)
        if args["causal"]:
            visible = visible.tril(length - num_queries)
        if args["window"]:
            visible = visible.triu(length - num_queries - args["window"] + 1)
            visible = visible.tril(length - num_queries + args["window"] - 1)
        if args["alibi"] is not None:
            keys_behind = torch.arange(length)[None] - torch.arange(length - num_queries, length)[:, None]
            if args.get("alibi_scale") is None:
                scores = scores + args["alibi"][:, None, None] * keys_behind
            else:
                numbers = torch.arange(length).bfloat16()
                of_keys = (args["alibi"][:, None] * numbers.float()).bfloat16().double()
                of_queries = of_keys[:, length - num_queries :]
                scores = scores + args["alibi_scale"] * (of_keys[:, None] - of_queries[:, :, None])
        if (bias := args.get("position_bias")) is not None:  # by how far behind a key is; the last column is for all beyond
            behind = torch.arange(length - num_queries, length)[:, None] - torch.arange(length)[None]
            scores = scores + bias.double()[:, behind.clamp(0, bias.shape[1] - 1)]
        scores = scores.masked_fill(~visible, -math.inf)
        if args["sinks"] is not None:
            scores = torch.cat([scores, args["sinks"].double()[:, None, None].expand(-1, num_queries, 1)], dim=-1)
        weights = scores.softmax(-1)[..., :length]
        expected = torch.stack([weights[h] @ values[h // group] for h in range(q.shape[1])], dim=1)
        torch.testing.assert_close(out[rows], expected)
        if args["return_lse"]:
            torch.testing.assert_close(result[1][rows], scores.logsumexp(-1).T.float())


def test_rms_norm_is_that_of_transformers() -> None:
    norm = LlamaRMSNorm(48, eps=1e-5)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(5, 48)
    got = OPS["rms_norm"].reference(x, None, norm.weight.data, 1e-5)
    torch.testing.assert_close(got, norm(x).detach())


def test_layer_norm_is_that_of_torch() -> None:
    x, residual, weight, bias = torch.randn(5, 48), torch.randn(5, 48), torch.randn(48), torch.randn(48)
    expected = F.layer_norm(x + residual, (48,), weight, bias, 1e-5)
    torch.testing.assert_close(OPS["layer_norm"].reference(x, residual, weight, bias, 1e-5), expected)


def test_rotary_is_that_of_transformers() -> None:
    q, k, positions = torch.randn(7, 4, 32), torch.randn(7, 2, 32), torch.randint(0, 50, (7,))
    angles = torch.arange(50)[:, None] * 100.0 ** -(torch.arange(0, 32, 2) / 32)
    whole = torch.cat([angles, angles], dim=-1)[positions]
    expected = apply_rotary_pos_emb(q[None].transpose(1, 2), k[None].transpose(1, 2), whole.cos()[None], whole.sin()[None])
    OPS["rotary"].reference(q, k, positions, torch.cat([angles.cos(), angles.sin()], dim=-1))
    torch.testing.assert_close((q, k), tuple(t.transpose(1, 2)[0] for t in expected))


def test_gptj_rotary_is_a_complex_product() -> None:
    q, k, positions = torch.randn(7, 4, 20), torch.randn(7, 2, 20), torch.randint(0, 50, (7,))
    angles = torch.arange(50)[:, None] * 100.0 ** -(torch.arange(0, 16, 2) / 16)
    turn = torch.polar(torch.ones_like(angles), angles)[positions][:, None]
    expected = q.clone()
    expected[..., :16] = torch.view_as_real(torch.view_as_complex(q[..., :16].unflatten(-1, (-1, 2))) * turn).flatten(-2)
    OPS["rotary"].reference(q, k, positions, torch.cat([angles.cos(), angles.sin()], dim=-1), "gptj")
    torch.testing.assert_close(q, expected)


def test_moe_is_that_of_transformers() -> None:
    config = MixtralConfig(hidden_size=24, intermediate_size=40, num_local_experts=5, num_experts_per_tok=2)
    torch.manual_seed(0)
    block = MixtralSparseMoeBlock(config)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(9, 24)
    with torch.no_grad():
        result = block(x[None])
        weights, ids = OPS["moe_route"].reference(x @ block.gate.weight.T, None, 2, True, "softmax")
        got = OPS["moe_experts"].reference(x, weights, ids, block.experts.gate_up_proj, block.experts.down_proj)
    expected = result[0] if isinstance(result, tuple) else result
    torch.testing.assert_close(got, expected.reshape(9, 24))
