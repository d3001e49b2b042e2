"""``model_index.json``: of which parts a pipeline of the diffusers library is made, before anything of it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..hub import PIPELINE_FILE, read_json

_PARTS = ("unet", "vae", "scheduler", "text_encoder", "tokenizer")
PIPELINES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"StableDiffusionPipeline": _PARTS, "StableDiffusionXLPipeline": (*_PARTS, "text_encoder_2", "tokenizer_2")}
)
"""Classes of the library that can be run -> the parts that each needs."""
OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")
CLASSES: Mapping[str, str] = MappingProxyType(
    {
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "CLIPTextModelWithProjection",
    }
)
"""What each part with weights must be."""
_LIBRARIES = ("diffusers", "transformers", "stable_diffusion")
"""Where classes of parts may come from; the last is the library's own name for that of safety checkers."""


def read_index(name: str, folder: Path) -> tuple[str, frozenset[str]]:
    """(class of the pipeline, the parts that it has) of the model ``name`` in ``folder``. Raises ValueError for a class that cannot
    be run, parts that are missing, and those that bring code of their own."""
    found = read_json(folder, PIPELINE_FILE)
    kind = check_kind(name, found.get("_class_name"))
    parts = {part for part, value in found.items() if _is_part(name, part, value)}
    if unknown := sorted(parts - {*PIPELINES[kind], *OPTIONAL}):
        raise ValueError(f"model {name!r} cannot make images: {PIPELINE_FILE} has {', '.join(unknown)}, which {kind} does not take")
    if missing := [part for part in PIPELINES[kind] if part not in parts]:
        raise ValueError(f"model {name!r} cannot make images: {PIPELINE_FILE} has no {', '.join(missing)}, which {kind} needs")
    for part in CLASSES.keys() & parts:
        if found[part][1] != CLASSES[part]:
            raise ValueError(
                f"model {name!r} cannot make images: its {part} is a {found[part][1]}; only {CLASSES[part]} can be run"
            )
    if absent := [part for part in PIPELINES[kind] if not (folder / part).is_dir()]:
        raise ValueError(
            f"model {name!r} cannot make images: {PIPELINE_FILE} names {', '.join(absent)}, but has no such folder beside it"
        )
    return kind, frozenset(part for part in parts if (folder / part).is_dir())


def check_kind(name: str, kind: object) -> str:
    """The class of a pipeline. Raises ValueError for one that cannot be run."""
    if not isinstance(kind, str) or kind not in PIPELINES:
        raise ValueError(
            f"model {name!r} cannot make images: its pipeline is {kind!r} (_class_name); those that can be run are "
            f"{', '.join(PIPELINES)}"
        )
    return kind


def _is_part(name: str, part: str, value: Any) -> bool:
    """Whether an entry of the index is a part that is there: [library, class], of which nulls stand for none."""
    if not isinstance(value, list) or part.startswith("_"):
        return False  # a setting
    if value == [None, None]:
        return False
    if len(value) != 2 or not all(isinstance(word, str) for word in value):
        raise ValueError(f"model {name!r} cannot make images: {PIPELINE_FILE} has {part}={value!r}; expected [library, class]")
    if value[0] not in _LIBRARIES:
        raise ValueError(
            f"model {name!r} cannot make images: its {part} is {value[1]} of {value[0]!r}, which is code of its own, and code of "
            "checkpoints is not run"
        )
    return True
