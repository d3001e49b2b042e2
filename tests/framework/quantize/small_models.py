"""Small random checkpoints with a tokenizer, and a calibration text that is read fast."""

from __future__ import annotations

import shutil
import sysconfig
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from framework.config import CALIBRATED_SCHEMES, QuantConfig

from ...models.examples import EXAMPLES
from ..models.checkpoints import make
from .formats_by_hand import read_tensors

TINY = Path(__file__).parents[3] / "framework" / "assets" / "tiny"
DENSE = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt-neox", "opt", "opt-post-norm", "mistral", "nemotron")
UNSCALED_NORMS = ("opt-post-norm", "cohere", "olmo", "olmo2")
"""More than one layer reads what their norms give, these have no weights, or stand behind the layers."""
MOE = ("mixtral", "qwen3-moe")
TEXT = Path(sysconfig.get_path("stdlib")) / "argparse.py"


def make_model(name: str, folder: Path, **changes: Any) -> PreTrainedModel:
    """An example of ``checkpoints`` with the embedded model's vocabulary and tokenizer. Its layers add little to the hidden states,
    so that what rounding does to one is not blown up by those that follow."""
    example = EXAMPLES[name]
    model = make(replace(example, config={**example.config, "vocab_size": 2048, **changes}), folder)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() > 1 and ".layers." in key:
                parameter *= 0.4
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TINY / file, folder / file)
    return model


def quant(scheme: str, **changes: Any) -> QuantConfig:
    text = str(TEXT) if scheme in CALIBRATED_SCHEMES else None
    values = {"group_size": 32, "calibration": text, "num_samples": 6, "sample_tokens": 40, **changes}
    return QuantConfig(scheme, **values)


@torch.inference_mode()
def logits(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **keywords: Any) -> torch.Tensor:
    """float32 logits by transformers of some tokens, with ``tensors`` in place of the checkpoint's."""
    if tensors is not None:
        with tempfile.TemporaryDirectory() as other:
            shutil.copyfile(folder / "config.json", Path(other) / "config.json")
            save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, Path(other) / "model.safetensors")
            return logits(Path(other))
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True, **keywords
    )
    assert not any(report.values()), report
    return model.eval()(torch.arange(7, 71).view(2, 32)).logits


def relative_error(model: Path, tensors: dict[str, torch.Tensor]) -> float:
    """Of the logits with ``tensors``, relative to what all quantized layers together do to the logits of the float model."""
    expected = logits(model)
    without = {name: tensor * 0 if is_linear(name) else tensor for name, tensor in read_tensors(model).items()}
    return float((logits(model, tensors) - expected).norm() / (logits(model, without) - expected).norm())


def is_linear(name: str) -> bool:
    """Of these models, by the names of transformers."""
    other = ("embed", "lm_head", "norm", "project", "mlp.gate.weight", "block_sparse_moe.gate.", "bias")
    return not any(part in name for part in other)
