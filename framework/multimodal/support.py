"""Which engines of a model that reads images take them."""

from __future__ import annotations

from ..config import EngineConfig


def images_refusal(config: EngineConfig) -> str | None:
    """Why images are refused, where the model could read them; None: they are not. The engine serves text all the same."""
    parallel, speculative = config.parallel, config.speculative_config
    if config.model.limit_mm_per_prompt.get("image") == 0:
        return "model.limit_mm_per_prompt.image=0 allows none; raise it, or leave it out"
    if parallel.pp > 1:
        return f"parallel.pp={parallel.pp} would have a tower in every stage; set 1"
    if parallel.num_schedulers > 1:
        return f"parallel.ep={parallel.ep} over parallel.dp={parallel.dp} has schedulers that share no encoder; leave out one"
    if speculative.place == "device":
        return f"speculative_config.method={speculative.method} cannot guess behind images; choose one on the host (ngram, suffix)"
    if config.model.skip_tokenizer:
        return "model.skip_tokenizer=true leaves no tokenizer to make placeholders with; set false"
    return None
