"""The control plane: requests, scheduler, cache bookkeeping, outputs. No torch."""
