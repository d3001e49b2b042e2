"""Towers for images, with their projectors to the decoder's width: the transformers library's modules, with our linear layers."""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from ..config import ModelConfig
from ..plan import KernelPlan
from . import cogvlm, internvl_chat, phi3_v
from .cogvlm_tower import CogVlmTower
from .hub import read_json
from .library import library_config, refused
from .phi3_tower import Phi3VisionTower
from .read import ModelInfo
from .tensor_files import TensorFiles, tensor_files
from .transformers_model import swap_linears

_KIND: Any = transformers.AutoModelForImageTextToText
_LOADING = threading.Lock()
"""Ranks may be threads, and what loads the library's models sets what all threads share: dtypes, seeds, devices."""
_TEXT = re.compile(r"(^|\.)(language_model|lm_head)(\.|$)")
"""Modules of the text model."""
_OWN_LAYOUTS = {kind.TYPE: kind.library_name for kind in (cogvlm, internvl_chat, phi3_v)}
"""Types whose checkpoints the library does not read -> the name that a tensor has in our modules, or the library's."""


class Tower:
    """module: the library's model, without its text model. dtype: of embeddings."""

    def __init__(self, module: Any, dtype: torch.dtype, device: torch.device) -> None:
        self.module, self.dtype, self.device = module, dtype, device

    @torch.inference_mode()
    def encode(self, inputs: Mapping[str, np.ndarray]) -> torch.Tensor:
        """inputs of one image, as ``get_image_features`` takes them -> its embeddings [E, H]."""
        tensors = {name: torch.from_numpy(value).to(self.device) for name, value in inputs.items()}
        cast = {name: value.to(self.dtype) if value.is_floating_point() else value for name, value in tensors.items()}
        found = self.module.get_image_features(**cast, return_dict=True).pooler_output
        features = found if isinstance(found, torch.Tensor) else torch.cat(tuple(found))
        return features.flatten(0, -2).to(self.dtype)


def load_tower(config: ModelConfig, info: ModelInfo, plan: KernelPlan, device: torch.device, seed: int) -> Tower:
    """seed: of dummy weights. Raises ValueError for a checkpoint that does not fit."""
    assert info.vision is not None
    dtype = getattr(torch, info.dtype)
    with _LOADING:
        if config.load_format == "dummy":
            with torch.random.fork_rng(), torch.device(device):
                torch.manual_seed(seed)
                model = _modules(config, info)
        elif info.vision.model_type in _OWN_LAYOUTS:
            model = _renamed(config, info, dtype)
        else:
            model = _from_library(config, info, dtype)
    model.eval().to(device=device, dtype=dtype)
    swap_linears(model, plan)
    plan.runs_in_library(model)
    return Tower(model, dtype, device)


def tower_bytes(config: ModelConfig, info: ModelInfo) -> int:
    """What the weights of a tower take."""
    with _LOADING, torch.device("meta"):
        model = _modules(config, info)
    return sum(weight.numel() for weight in model.parameters()) * getattr(torch, info.dtype).itemsize


def _modules(config: ModelConfig, info: ModelInfo) -> Any:
    """With random weights, on the current device."""
    assert info.vision is not None
    if info.vision.model_type == phi3_v.TYPE:
        return Phi3VisionTower(*phi3_v.tower_sizes(info.config))
    if info.vision.model_type == cogvlm.TYPE:
        return CogVlmTower(cogvlm.tower_sizes(info.config))
    found = tower_config(config, info.folder, info.vision.model_type)
    try:
        model = _KIND.from_config(found, dtype=getattr(torch, info.dtype)).model
    except Exception as error:  # modules check what they are made of each in its way
        raise refused(config, error) from error
    model.language_model = None
    return model


def _from_library(config: ModelConfig, info: ModelInfo, dtype: torch.dtype) -> Any:
    """With the weights of a checkpoint as the library reads it."""
    assert info.vision is not None
    found = tower_config(config, info.folder, info.vision.model_type)
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # the text model does not fit, as it must
    try:
        told = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        whole, report = _KIND.from_pretrained(info.folder, config=found, dtype=dtype, **told)
    finally:
        transformers.logging.set_verbosity(verbosity)
    wrong = {key: [str(name) for name in names if not _TEXT.search(_name(name))] for key, names in report.items()}
    if wrong := {key: sorted(names)[:20] for key, names in wrong.items() if names}:
        raise ValueError(f"the checkpoint in {info.folder} does not fit its config.json: {wrong}")
    whole.model.language_model = None
    return whole.model


def _renamed(config: ModelConfig, info: ModelInfo, dtype: torch.dtype) -> Any:
    """With the weights of a checkpoint that the library does not read."""
    assert info.folder is not None and info.vision is not None
    library_name, has_buffers = _OWN_LAYOUTS[info.vision.model_type], info.vision.model_type == phi3_v.TYPE
    with torch.device("cpu" if has_buffers else "meta"):  # no checkpoint holds those of CLIP
        model = _modules(config, info)
    files = TensorFiles(info.folder, {name: (file, name) for name, file in tensor_files(info.folder).items()})
    weights: dict[str, torch.Tensor] = {}
    for name in files.where:
        if (ours := library_name(name)) is None:
            continue
        tensor = files.read(name, None).to(dtype)
        if ".qkv." in ours:
            weights |= {ours.replace(".qkv.", f".{q}_proj."): rows for q, rows in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            weights[ours] = tensor
    files.close()
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        said = " ".join(str(error).split())[:1000]
        raise ValueError(f"the checkpoint in {info.folder} does not fit its config.json: {said}") from error
    return model


def _name(reported: Any) -> str:
    """Of a weight; of those with another shape the report has tuples."""
    return str(reported[0] if isinstance(reported, tuple) else reported)


def tower_config(config: ModelConfig, folder: Path | None, model_type: str) -> Any:
    """The library's configuration of the model with next to nothing of its text model, which is ours."""
    if model_type == internvl_chat.TYPE:
        found = internvl_chat.library_config({**read_json(folder, "config.json"), **config.architecture})
    else:
        found = copy.deepcopy(library_config(config, folder, model_type))
    if hasattr(found, "quantization_config"):
        del found.quantization_config  # of the text model
    text = found.get_text_config()
    small = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 8}
    own = type(text)(**small, hidden_size=text.hidden_size, vocab_size=8, pad_token_id=None, bos_token_id=0, eos_token_id=None)
    found.text_config = own
    return found
