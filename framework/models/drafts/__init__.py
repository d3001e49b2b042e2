"""Drafting heads: small models that guess the tokens after the target's next one from the target's own states."""
