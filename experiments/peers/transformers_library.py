"""The transformers library as a system to serve with: its model, and what of a workload it can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers

from framework.config import EngineConfig
from framework.engine.kv_cache.spec import ELEMENT_BYTES
from framework.executor.kinds import EXECUTORS
from framework.models.library import library_config, num_library_weights
from framework.models.read import ModelInfo
from framework.models.transformers_model import library_model
from framework.study.workload.config import SamplingConfig
from framework.worker.devices import open_device
from framework.worker.weight_memory import check_weights_fit


@dataclass
class Completion:
    """What one request got. times_s: of each token, in ``time.perf_counter``'s seconds; error: why it failed, else None."""

    request_id: str
    token_ids: list[int]
    times_s: list[float]
    error: str | None = None


@dataclass(frozen=True)
class Library:
    """A model of the library on its device, with its own attention, in the dtype and with the weights (load_format=dummy: the
    shapes) that our engine has for the same config."""

    config: EngineConfig
    model: Any
    max_model_len: int

    @classmethod
    def load(cls, config: EngineConfig, info: ModelInfo) -> Library:
        """info: of ``config.model``. Raises ValueError for models that cannot be served, and for what only our engine has."""
        config.validate()
        if not EXECUTORS[config.executor.kind].has_device:
            raise ValueError(
                f"executor.kind={config.executor.kind} is a device of our engine only: serve with system=kernelswap, "
                f"or choose executor.kind={' or '.join(name for name, kind in EXECUTORS.items() if kind.has_device)}"
            )
        for key, asked in (
            ("profile", config.profile),
            ("capture", config.capture),
            ("executor.op_scale", config.executor.op_scale),
            ("executor.op_delay_s", config.executor.op_delay_s),
        ):
            if asked:
                raise ValueError(f"{key}={asked}: only our engine's kernel calls are seen; leave it out, or use system=kernelswap")
        device = open_device(config.device)
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        if config.cache.dtype not in ("auto", info.dtype):
            raise ValueError(
                f"cache.dtype={config.cache.dtype}: the library keeps keys and values in the model's {info.dtype}; "
                "use cache.dtype=auto"
            )
        if config.quant.scheme != "none":
            raise ValueError(f"quant.scheme={config.quant.scheme}: the library serves weights as they are stored; use quant=none")
        found = library_config(config.model, info.folder, info.config["model_type"])
        if found.is_encoder_decoder:
            raise ValueError(f"model {config.model.name!r} is an encoder-decoder; only decoders can be served")
        check_weights_fit(num_library_weights(config.model, found) * ELEMENT_BYTES[info.dtype], info, device)
        return cls(config, library_model(config.model, info, found, device.torch, config.seed), info.max_model_len)

    @property
    def vocab_size(self) -> int:
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def attention(self) -> str:
        """The library's name for the attention that its model runs with now."""
        return str(self.model.config._attn_implementation)

    def limit(self, num_prompt_tokens: int, max_tokens: int | None) -> int:
        """Tokens that a request may get, by the rule of our engine. Raises ValueError for a prompt that leaves room for none."""
        room = self.max_model_len - num_prompt_tokens
        if room <= 0:
            raise ValueError(
                f"the prompt has {num_prompt_tokens} tokens, but prompt and output together may have at most "
                f"{self.max_model_len} (model.max_model_len): shorten the prompt"
            )
        return room if max_tokens is None else min(max_tokens, room)


def generation_config(sampling: SamplingConfig, **more: Any) -> transformers.GenerationConfig:
    """How the library samples, equal for all requests; its random numbers have one seed, not one per request. Raises ValueError
    naming what it lacks."""
    for name in ("presence_penalty", "frequency_penalty"):
        if value := getattr(sampling, name):
            raise ValueError(f"workload.sampling.{name}={value}: the transformers library has no such penalty")
    chosen: dict[str, Any] = {"do_sample": sampling.temperature > 0, "repetition_penalty": sampling.repetition_penalty, **more}
    if chosen["do_sample"]:
        chosen |= {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": max(sampling.top_k, 0),
            "min_p": sampling.min_p or None,
        }
    return transformers.GenerationConfig(**chosen)
