"""Images among the tokens of a prompt: from pictures to what a model's tower takes, where they stand, and who keeps what came of
them. No tensors: the worker has those."""
