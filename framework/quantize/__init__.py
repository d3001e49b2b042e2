"""Writes quantized checkpoints, in the formats of the public tools: by rounding, GPTQ, AWQ, or AutoRound."""

from .cache import cached_checkpoint
from .checkpoint import quantize_checkpoint

__all__ = ["cached_checkpoint", "quantize_checkpoint"]
