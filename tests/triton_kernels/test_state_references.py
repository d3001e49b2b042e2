"""The ops of models with states against the modules of transformers."""

from __future__ import annotations

import pytest
import torch
from transformers.models.mamba2.modeling_mamba2 import MambaRMSNormGated
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
