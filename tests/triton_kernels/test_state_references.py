"""The ops of models with states against the modules of transformers."""

from __future__ import annotations

import pytest
import torch
from transformers.models.jamba.modeling_jamba import mamba_selective_scan, mamba_selective_state_update
from transformers.models.mamba2.modeling_mamba2 import MambaRMSNormGated, mamba2_chunk_scan, mamba2_selective_state_update
from transformers.models.qwen3_next.modeling_qwen3_next import (
    Qwen3NextRMSNormGated,
    causal_conv1d_fn,
    causal_conv1d_update,
    torch_chunk_gated_delta_rule,
    torch_recurrent_gated_delta_rule,
)

from triton_kernels.registry import Registry
from triton_kernels.spec import Spec
from triton_kernels.state_meta import StateMeta

REGISTRY = Registry.load()
NAMES = ("reference", "torch")


def bind(op: str, name: str, **bound: object) -> object:
    weights = {key: value for key, value in bound.items() if isinstance(value, torch.Tensor)}
    params = {key: value for key, value in bound.items() if key not in weights}
    return REGISTRY.impls(op)[name].bind(Spec("cpu", "cpu", torch.float32), weights, params)


@pytest.mark.parametrize("name", NAMES)
def test_gated_norms_are_those_of_qwen3_next_and_of_mamba2(name: str) -> None:
    x, gate = torch.randn(2, 7, 3, 48)
    weight = torch.randn(48)
    modules = (Qwen3NextRMSNormGated(48, 1e-5), True, 48), (MambaRMSNormGated(48, 16, 1e-5), False, 16)
    for module, norm_first, group_size in modules:
        module.weight.data = weight
        norm = bind("gated_rms_norm", name, weight=weight, eps=1e-5, group_size=group_size, norm_first=norm_first)
        torch.testing.assert_close(norm(x, gate), module(x, gate).detach())


def batch(num_reqs: int, num_tokens: int, is_first: bool) -> StateMeta:
    """Requests of equal length, in slots 0, 1, ..."""
    cu_q = torch.arange(0, num_reqs * num_tokens + 1, num_tokens, dtype=torch.int32)
    return StateMeta(cu_q, torch.arange(num_reqs, dtype=torch.int32), torch.full((num_reqs,), is_first), num_tokens)


@pytest.mark.parametrize("name", NAMES)
def test_convolutions_are_those_of_qwen3_next(name: str) -> None:
    weight, bias, x, token = torch.randn(12, 4), torch.randn(12), torch.randn(2, 9, 12), torch.randn(2, 1, 12)
    expected = causal_conv1d_fn(x.mT, weight, bias, activation="silu").mT
    expected_state = x[:, -3:].mT.contiguous()
    expected_token = causal_conv1d_update(token.mT, expected_state, weight, bias, "silu").mT
    conv, state = bind("causal_conv1d", name, weight=weight, bias=bias, activation="silu"), torch.full((3, 3, 12), torch.nan)
    torch.testing.assert_close(conv(x.flatten(0, 1), state, batch(2, 9, True)), expected.flatten(0, 1))
    torch.testing.assert_close(conv(token.flatten(0, 1), state, batch(2, 1, False)), expected_token.flatten(0, 1))
    torch.testing.assert_close(state[:2], expected_state.mT)


@pytest.mark.parametrize("name", NAMES)
def test_the_gated_delta_rule_is_that_of_qwen3_next(name: str) -> None:
    a_log, dt_bias, prompt, token = torch.randn(4), torch.randn(4), 70, 1
    rule = bind("gated_delta_rule", name, a_log=a_log, dt_bias=dt_bias, scale=16**-0.5)
    state, expected_state = torch.full((3, 4, 16, 24), torch.nan), None
    for length, theirs in ((prompt, torch_chunk_gated_delta_rule), (token, torch_recurrent_gated_delta_rule)):
        (q, k), v, (a, b) = torch.randn(2, 2, length, 2, 16), torch.randn(2, length, 4, 24), torch.randn(2, 2, length, 4)
        decay = -a_log.exp() * torch.nn.functional.softplus(a + dt_bias)
        expected, expected_state = theirs(
            q, k, v, decay, b.sigmoid(), initial_state=expected_state, output_final_state=True, use_qk_l2norm_in_kernel=True
        )
        out = rule(*(x.flatten(0, 1) for x in (q, k, v, a, b)), state, batch(2, length, is_first=length == prompt))
        torch.testing.assert_close(out, expected.flatten(0, 1), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(state[:2], expected_state, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_scan_is_that_of_mamba2(name: str) -> None:
    a_log, dt_bias, d = torch.randn(3, 4)
    x, dt, b, c = torch.randn(2, 71, 4, 8), torch.randn(2, 71, 4), torch.randn(2, 71, 2, 16), torch.randn(2, 71, 2, 16)
    whole = {"chunk_size": 16, "D": d, "dt_bias": dt_bias, "dt_softplus": True, "return_final_states": True}
    expected, expected_state = mamba2_chunk_scan(x[:, :70], dt[:, :70], -a_log.exp(), b[:, :70], c[:, :70], **whole)
    rates, bias, skip = -a_log.exp()[:, None, None].expand(4, 8, 16), dt_bias[:, None].expand(4, 8), d[:, None].expand(4, 8)
    step = dt[:, 70, :, None].expand(2, 4, 8)
    token = mamba2_selective_state_update(
        expected_state, x[:, 70], step, rates, b[:, 70], c[:, 70], skip, dt_bias=bias, dt_softplus=True
    )
    scan, state = (
        bind("ssd_scan", name, a_log=a_log, dt_bias=dt_bias, d=d, dt_min=0.0, dt_max=float("inf")),
        torch.full((3, 4, 8, 16), torch.nan),
    )
    for rows, theirs in ((slice(0, 70), expected), (slice(70, 71), token[:, None])):
        length = rows.stop - rows.start
        out = scan(*(t[:, rows].flatten(0, 1) for t in (x, dt, b, c)), state, batch(2, length, rows.start == 0))
        torch.testing.assert_close(out, theirs.flatten(0, 1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(state[:2], expected_state, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_scan_is_that_of_jamba(name: str) -> None:
    a_log, (dt_bias, d) = torch.randn(12, 16), torch.randn(2, 12)
    x, dt, z, b, c = *torch.randn(3, 2, 31, 12), *torch.randn(2, 2, 31, 16)
    inputs = (x[:, :30].mT, dt[:, :30].mT, -a_log.exp(), b[:, :30].mT, c[:, :30].mT)
    expected, expected_state = mamba_selective_scan(
        *inputs, D=d, z=z[:, :30].mT, delta_bias=dt_bias, delta_softplus=True, return_last_state=True
    )
    last = (x[:, 30], dt[:, 30], -a_log.exp(), b[:, 30], c[:, 30], d)
    token = mamba_selective_state_update(expected_state, *last, z=z[:, 30], dt_bias=dt_bias, dt_softplus=True)
    scan, state = bind("selective_scan", name, a_log=a_log, dt_bias=dt_bias, d=d), torch.full((3, 12, 16), torch.nan)
    for rows, theirs in ((slice(0, 30), expected.mT), (slice(30, 31), token[:, None])):
        length = rows.stop - rows.start
        out = scan(*(t[:, rows].flatten(0, 1) for t in (x, dt, b, c, z)), state, batch(2, length, rows.start == 0))
        torch.testing.assert_close(out, theirs.flatten(0, 1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(state[:2], expected_state, atol=1e-4, rtol=1e-4)
