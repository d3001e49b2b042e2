"""Our engine beside others, on the same requests."""
