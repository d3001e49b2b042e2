"""Which engines of a model that reads images take them."""

from __future__ import annotations

from ..config import EngineConfig


def images_refusal(config: EngineConfig) -> str | None:
    """Why images are refused, where the model could read them; None: they are not. The engine serves text all the same."""
    parallel, speculative = config.parallel, config.speculative_config
    if config.model.limit_mm_per_prompt.get("image") == 0:
        return "model.limit_mm_per_prompt.image=0 allows none; raise it, or leave it out"
    if config.executor.kind != "local":
        return f"executor.kind={config.executor.kind} has no tower for them; set local"
    if parallel.num_ranks > 1:
        return f"parallel.tp={parallel.tp}, pp={parallel.pp}, ep={parallel.ep} would share a tower that is not cut; set 1 each"
    if speculative.method is not None:
        return f"speculative_config.method={speculative.method} cannot guess behind images; leave it out"
    if config.lora.enabled:
        return "lora.enabled=true has no slots in the tower; set false"
    if config.model.skip_tokenizer:
        return "model.skip_tokenizer=true leaves no tokenizer to make placeholders with; set false"
    return None
