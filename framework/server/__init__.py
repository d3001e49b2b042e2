"""The OpenAI-compatible surface. Nothing is here yet."""
