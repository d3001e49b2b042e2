"""gpt-oss with experts in MXFP4: the logits are the library's over the weights that the quantized values stand for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from framework.config import ModelConfig
from framework.models.parts import Part
from framework.models.quantization.mxfp4 import Mxfp4Experts, mxfp4_values
from framework.models.quantization.unquantized import Unquantized
from framework.models.weights import EmptyWeights

from ....models.examples import EXAMPLES
from ..checkpoints import make
from ..harness import build, error, reference, sequences, teacher_forced

VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def test_logits_are_those_of_the_unpacked_weights(tmp_path: Path) -> None:
    """By hand: element 2i in the low half of byte i, then a sign bit; a scale of 2^(s - 127) for 32 inputs."""
    theirs = make(EXAMPLES["gpt-oss"], tmp_path)
    tensors, generator = load_file(tmp_path / "model.safetensors"), torch.Generator().manual_seed(5)
    for name, parameter in theirs.named_parameters():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            continue
        experts, columns, rows = parameter.shape  # inputs first
        codes = torch.randint(0, 16, (experts, rows, columns), generator=generator)
        scales = torch.randint(122, 126, (experts, rows, columns // 32), generator=generator)
        numbers = VALUES[codes & 7] * torch.where(codes >= 8, -1.0, 1.0)
        weight = numbers.unflatten(-1, (-1, 32)) * torch.exp2(scales - 127.0)[..., None]
        with torch.no_grad():
            parameter.copy_(weight.flatten(-2).mT)
        del tensors[name]
        packed = (codes[..., ::2] | codes[..., 1::2] << 4).to(torch.uint8)
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = packed.unflatten(-1, (-1, 16)).contiguous(), scales.to(torch.uint8)
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "mxfp4"}}))
    (row,) = sequences((23,))
    model = build(ModelConfig(str(tmp_path), dtype="float32"))
    assert error(teacher_forced(model, [row], 9, num_decodes=4)[0], reference(theirs, row)) <= 1e-4


def test_values_are_those_of_the_library_bit_for_bit() -> None:
    """Every byte under every scale that gives no infinity in bfloat16, save that of NaN. It returns inputs first."""
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 16, 1, 16).expand(1, 16, 250, 16).contiguous()
    scales = torch.arange(250, dtype=torch.uint8).expand(1, 16, 250).contiguous()
    for dtype in (torch.bfloat16, torch.float32):
        theirs = convert_moe_packed_tensors(blocks, scales, dtype=dtype).mT
        ours = mxfp4_values(blocks.flatten(-2), scales).to(dtype)
        assert torch.equal(ours.view(torch.uint8), theirs.contiguous().view(torch.uint8))


def test_experts_one_by_one_are_refused() -> None:
    part = Part(("experts.{e}.w2",), (64,), 96, num_experts=4)
    with pytest.raises(ValueError, match="MXFP4 is known of experts in one tensor"):
        list(Mxfp4Experts().names(part, EmptyWeights(torch.device("cpu"), torch.float32, Unquantized())))
