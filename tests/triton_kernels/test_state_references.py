"""The ops of models with states against the modules of transformers."""

from __future__ import annotations

import pytest
import torch
from transformers.models.mamba2.modeling_mamba2 import MambaRMSNormGated
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated

from triton_kernels.registry import Registry
from triton_kernels.spec import Spec

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
