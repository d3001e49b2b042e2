"""Encoders of encoder-decoders: the transformers library's modules."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers

from ..config import ModelConfig
from ..engine.encoding import EncoderInput
from ..plan import KernelPlan
from .decoder import Decoder
from .library import library_config
from .read import ModelInfo
from .tensor_files import TensorFiles, tensor_files

_EMBEDDING = "embed_tokens.weight"
"""Of the library's encoder, which is handed embeddings instead."""


class Encoder:
    """module: the library's. decoder: whose embedding of tokens it shares."""

    def __init__(self, module: Any, decoder: Decoder, dtype: torch.dtype, device: torch.device) -> None:
        self.module, self._decoder, self._dtype, self._device = module, decoder, dtype, device

    @torch.inference_mode()
    def encode(self, given: EncoderInput) -> torch.Tensor:
        """[S, H]: one request by itself, so that what it gets depends on no other."""
        if given.features is not None:
            features = torch.from_numpy(given.features).to(self._device, self._dtype)
            return self.module(input_features=features[None]).last_hidden_state[0]
        embeddings = self._decoder.embed_tokens(torch.tensor(given.token_ids, device=self._device))
        return self.module(inputs_embeds=embeddings[None]).last_hidden_state[0]

    def longest(self, num_tokens: int) -> EncoderInput:
        """An input that gives so many vectors, the most that there can be; of no meaning."""
        bins = getattr(self.module.config, "num_mel_bins", None)
        if bins is None:
            return EncoderInput(num_tokens, [0] * num_tokens)
        stride = self.module.conv1.stride[0] * self.module.conv2.stride[0]
        return EncoderInput(num_tokens, features=np.zeros((bins, num_tokens * stride), dtype=np.float32))


def load_encoder(
    config: ModelConfig, info: ModelInfo, decoder: Decoder, plan: KernelPlan, device: torch.device, seed: int
) -> Encoder:
    """seed: of dummy weights. Raises ValueError for a checkpoint that does not fit."""
    dtype = getattr(torch, info.dtype)
    found = library_config(config, info.folder, info.config["model_type"])
    if config.load_format == "dummy":
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(seed)
            module: Any = _encoder_of(found, dtype)
    else:
        with torch.device("meta"):
            module = _encoder_of(found, dtype)
        _load(module, info, device, dtype)
    plan.runs_in_library(module)
    return Encoder(module.eval(), decoder, dtype, device)


def encoder_bytes(config: ModelConfig, info: ModelInfo) -> int:
    """What the weights of an encoder take."""
    found, dtype = library_config(config, info.folder, info.config["model_type"]), getattr(torch, info.dtype)
    with torch.device("meta"):
        module = _encoder_of(found, dtype)
    return sum(weight.numel() * weight.itemsize for name, weight in module.state_dict().items() if name != _EMBEDDING)


def _encoder_of(found: Any, dtype: torch.dtype) -> Any:
    model: Any = transformers.AutoModel.from_config(found, dtype=dtype)
    module = model.get_encoder()
    if hasattr(module, "embed_tokens"):
        module.embed_tokens = None
    return module


def _load(module: Any, info: ModelInfo, device: torch.device, dtype: torch.dtype) -> None:
    assert info.folder is not None and info.architecture is not None
    where = {}
    for name, file in tensor_files(info.folder).items():
        _, found, own = name.partition("encoder.")
        if found and "decoder." not in name and own != _EMBEDDING:
            where[own] = file, name
    files = TensorFiles(info.folder, where)
    wanted = module.state_dict()
    if missing := sorted(set(wanted) - set(where)):
        raise ValueError(
            f"the checkpoint in {info.folder} does not fit its config.json: its encoder lacks {', '.join(missing[:20])}"
        )
    if unknown := sorted(set(where) - set(wanted)):
        raise ValueError(
            f"the checkpoint in {info.folder} does not fit its config.json: its encoder has no {', '.join(unknown[:20])}"
        )
    loaded = {name: files.read_float(name, tuple(like.shape)).to(device, dtype) for name, like in wanted.items()}
    files.close()
    module.load_state_dict(loaded, assign=True)
