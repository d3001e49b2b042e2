"""Writes quantized checkpoints, in the formats of the public tools: by rounding, GPTQ, AWQ, or AutoRound."""

from .checkpoint import cached_checkpoint, quantize_checkpoint

__all__ = ["cached_checkpoint", "quantize_checkpoint"]
