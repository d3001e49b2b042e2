"""Quantized checkpoints: their formats, and the way to the canonical layouts that the kernels pack from."""
