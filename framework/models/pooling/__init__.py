"""What becomes of a model's hidden states where it pools: read from its files, then bound."""
