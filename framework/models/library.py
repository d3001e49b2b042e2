"""What the transformers library says of a model, before anything of it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from ..config import ModelConfig


def library_config(config: ModelConfig, folder: Path | None, model_type: str) -> Any:
    """The library's configuration object of the model in ``folder``; None: of its ``model_type`` alone. Raises ValueError for what
    the library refuses."""
    given = {name: value for name, value in config.architecture.items() if name != "model_type"}
    try:
        if folder is None:
            return transformers.AutoConfig.for_model(model_type, **given)
        return transformers.AutoConfig.from_pretrained(folder, **given)
    except Exception as error:  # configurations check themselves, each in its way
        raise refused(config, error) from error


def num_library_weights(config: ModelConfig, found: Any, kind: Any = transformers.AutoModelForCausalLM) -> int:
    """Elements of the library's model for its configuration ``found``, made by ``kind``; none is allocated. Raises ValueError for a
    configuration that no model can be made of."""
    try:
        with torch.device("meta"):
            model: Any = kind.from_config(found)
    except Exception as error:  # likewise
        raise refused(config, error) from error
    return sum(weight.numel() for weight in model.parameters())


def refused(config: ModelConfig, error: Exception) -> ValueError:
    """What to raise where the library raised ``error`` for a config.json."""
    said = " ".join(str(error).split())[:500]
    return ValueError(
        f"model {config.name!r} cannot run: transformers {transformers.__version__} refuses its config.json (or "
        f"model.architecture): {type(error).__name__}: {said}"
    )
