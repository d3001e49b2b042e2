"""Which types of models can be served, and how: from the families and the library's default configurations alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .families.diffusion import LIBRARY_DENOISERS
from .families.diffusion import REFUSED as REFUSED_DENOISERS
from .image_generation.index import PIPELINES
from .native import read_native
from .plugins import ENTRY_POINT_GROUP, family_names, find_family
from .pooling.read import REFUSED_TOWERS, TOWERS
from .read import text_part
from .transformers_model import refusal
from .vision import IMAGE_TYPES

Path = Literal["native", "transformers", "diffusers", "refused"]


@dataclass(frozen=True)
class ServedType:
    """One model_type. path: what runs it; reason: why that is not the native decoder; tasks: what it can be asked for, "images" if
    it reads them among text."""

    model_type: str
    path: Path
    reason: str
    tasks: tuple[str, ...]


def served_types(every: bool = False) -> Iterator[ServedType]:
    """The types of the families and of the library's causal language models, or of all its models, by name, and the pipelines that
    make images. What a checkpoint's own
    config asks for may still be refused, and a model on the library's path is probed when it is loaded."""
    theirs = CONFIG_MAPPING_NAMES if every else MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    families = [*family_names(), *IMAGE_TYPES]
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # some defaults contradict each other, which is of no interest here
    try:
        for model_type in sorted({*theirs, *families, *LIBRARY_DENOISERS}):
            path, reason = _path(model_type, model_type in families)
            yield ServedType(model_type, path, reason, _tasks(model_type, path))
    finally:
        transformers.logging.set_verbosity(verbosity)
    for kind in PIPELINES:
        yield ServedType(kind, "diffusers", "a pipeline (model_index.json), which framework.ImagePipeline runs", ("text-to-image",))


def _tasks(model_type: str, path: Path) -> tuple[str, ...]:
    if model_type in TOWERS:
        return ("embed",)
    if path != "native":
        return () if path == "refused" else ("generate",)
    reads_images, text_type = model_type in IMAGE_TYPES, model_type
    if reads_images and model_type in CONFIG_MAPPING_NAMES:
        text_type = transformers.AutoConfig.for_model(model_type).get_text_config().model_type
    family = find_family(text_type)
    generated = ("generate", "images") if reads_images else ("generate",)
    if family is not None and (family.encoder or family.denoises or family.crosses):
        return generated
    pooled = ("embed", "classify", "score")
    return (*generated, *pooled) if family is None or family.causal else pooled


def _path(model_type: str, has_family: bool) -> tuple[Path, str]:
    if model_type in IMAGE_TYPES:
        return "native", ""
    reason = "no native family"
    if has_family:
        try:
            find_family(model_type)
        except ValueError as error:
            return "refused", f"{error} (entry point in the group {ENTRY_POINT_GROUP})"
    if model_type not in CONFIG_MAPPING_NAMES:
        return "native", ""
    try:
        config = transformers.AutoConfig.for_model(model_type)
    except Exception as error:  # configurations check themselves, each in its way
        if has_family:
            return "native", ""
        last = str(error).strip().splitlines()[-1].strip()
        return "refused", f"its default configuration is refused by transformers: {last}"
    if has_family:
        try:
            architecture, reason = read_native(text_part(config.to_dict()))
        except ValueError:  # the library's defaults leave out what every checkpoint says
            return "native", ""
        if architecture is not None:
            return "native", ""
    if model_type in TOWERS:
        return "transformers", reason
    if why := REFUSED_TOWERS.get(model_type) or REFUSED_DENOISERS.get(model_type) or refusal(config):
        return "refused", why
    return "transformers", reason
