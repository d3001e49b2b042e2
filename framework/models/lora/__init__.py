"""Low-rank adapters of native models."""
