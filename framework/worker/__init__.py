"""The data plane: everything with tensors, from a step input to a step output."""
