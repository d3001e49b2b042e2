"""Images made of text, by a pipeline of the diffusers library whose attention and linear layers are ours."""

from __future__ import annotations

import math
import reprlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from .config import EngineConfig
from .config_checks import require
from .engine_args import engine_config
from .interpreter import enable_interpreter
from .sampling_params import is_unicode

if TYPE_CHECKING:
    import torch

_READ = frozenset(
    {
        *("model.name", "model.revision", "model.dtype"),
        *("kernels", "plugins", "tuned", "device", "interpret", "seed", "num_threads"),
    }
)
"""Keys of EngineConfig that mean something here."""
MAX_SIDE = 4096
"""Pixels. The largest models were trained on 1024; attention takes the fourth power of a side."""
MAX_IMAGES = 64
"""Of one call, which computes them side by side."""


@dataclass(frozen=True)
class GeneratedImages:
    """What ``ImagePipeline.generate`` made.

    images        PIL images, one per prompt
    latents       float32 [prompts, channels, height / 8, width / 8] on the CPU: what the images were decoded from
    flagged       per image, whether the pipeline's safety checker made it black; False where there is none
    step_seconds  what each call of the UNet took, with the scheduler's step behind it
    plan          what ran: op -> impl, what chose it, calls, ...; ``library`` names what was no kernel of ours
    """

    images: list[Any]
    latents: torch.Tensor
    flagged: list[bool]
    step_seconds: list[float]
    plan: dict[str, dict[str, Any]]


class ImagePipeline:
    """A model that makes images of text: a folder with a ``model_index.json``, or a Hugging Face id of one. It needs the extra
    ``diffusers``.

    The library runs the pipeline. Linear layers of the UNet and the text encoders are the op ``linear``, and the UNet's attention
    (to itself, and to the text) is ``paged_attention_prefill``; the autoencoder, once per image, is the library's."""

    def __init__(
        self,
        model: str | EngineConfig,
        *,
        kernels: Mapping[str, str] | None = None,
        revision: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        plugins: Sequence[str] = (),
        interpret: bool = False,
        seed: int = 0,
    ) -> None:
        """As those of ``LLM``; with an EngineConfig the others stand there. dtype: auto is float32.

        Raises ValueError for a model that cannot be run, and for keys of an EngineConfig that say nothing here; NoKernelError for
        kernels that cannot serve."""
        config = engine_config(
            model, kernels=kernels, revision=revision, dtype=dtype, device=device, plugins=plugins, interpret=interpret, seed=seed
        )
        config.validate()
        _refuse_unread(config, EngineConfig())
        if config.interpret:
            enable_interpreter()
        import torch

        from .models.image_generation.load import load_pipeline
        from .plan import KernelPlan, fold_choices, preferred_block_size
        from .worker.devices import open_device

        config = fold_choices(config, kernels)
        self._seed, dtype = config.seed, "float32" if config.model.dtype == "auto" else config.model.dtype
        require(dtype in ("float32", "float16", "bfloat16"), "model.dtype", dtype, "auto, float32, float16 or bfloat16")
        opened = open_device(config.device)
        opened.activate()
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        self._plan = KernelPlan.from_config(config, opened.torch, getattr(torch, dtype), opened.arch)
        self._pipeline = load_pipeline(config.model, self._plan, opened.torch, dtype, preferred_block_size(opened.arch))
        self._plan.check_bound()
        self._lock = threading.Lock()
        self._unet_starts: list[float] = []
        self._pipeline.library.unet.register_forward_pre_hook(lambda *_: self._unet_starts.append(self._now()))

    @property
    def library(self) -> Any:
        """The pipeline of diffusers, with its scheduler and its other parts."""
        return self._pipeline.library

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        height: int | None = None,
        width: int | None = None,
        seed: int | None = None,
        use_tqdm: bool = True,
    ) -> GeneratedImages:
        """Makes an image of each prompt, all side by side. Calls of several threads wait for each other.

        negative_prompt  what to keep away from: one for all, or one each; only with a guidance_scale above 1
        num_inference_steps  at most those that the scheduler was trained with
        guidance_scale   how much the prompt counts, over none; 1 or less: no guidance, at half of the cost
        height, width    in pixels; None: as the model was trained
        seed             of the first image's noise, and one more for each further; None: the pipeline's

        Raises ValueError for arguments that cannot work, naming them; RuntimeError for images that are no numbers."""
        prompts = _texts(prompt, "prompt")
        most = self.library.scheduler.config.num_train_timesteps
        _check_number("num_inference_steps", num_inference_steps, int, 1, most)
        _check_number("guidance_scale", guidance_scale, float, 0, 1000)
        seed = self._seed if seed is None else seed
        _check_number("seed", seed, int, 0, 2**63 - 1 - MAX_IMAGES)
        negative = self._negative(negative_prompt, len(prompts), guidance_scale)
        sides = {"height": self._side("height", height), "width": self._side("width", width)}
        given: dict[str, Any] = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale, **sides}
        with self._lock:
            for name, texts in (("prompt", prompts), ("negative_prompt", negative or [])):
                self._check_lengths(name, texts)
            return self._generate(prompts, negative, seed, use_tqdm, given)

    def _generate(
        self, prompts: list[str], negative: list[str] | None, seed: int, use_tqdm: bool, given: dict[str, Any]
    ) -> GeneratedImages:
        """given: further arguments of the library's."""
        for kernel in self._plan.bound:
            kernel.calls = 0
        self._unet_starts.clear()
        last: dict[str, Any] = {}

        def keep(_: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            last.update(tensors, ended=self._now())
            return tensors

        import numpy as np
        import torch

        self.library.set_progress_bar_config(disable=not use_tqdm)
        try:
            found = self.library(
                prompts,
                negative_prompt=negative,
                generator=[torch.Generator().manual_seed(seed + i) for i in range(len(prompts))],
                callback_on_step_end=keep,
                callback_on_step_end_tensor_inputs=["latents"],
                output_type="np",
                **given,
            )
        finally:
            self._pipeline.forget()
        if not (last["latents"].isfinite().all() and np.isfinite(found.images).all()):
            raise RuntimeError("the model computed no numbers: its weights have none, or dtype has too small a range; try float32")
        flagged = getattr(found, "nsfw_content_detected", None) or [False] * len(prompts)
        seconds = [end - start for start, end in pairwise([*self._unet_starts, last["ended"]])]
        images = self.library.image_processor.numpy_to_pil(found.images)
        return GeneratedImages(images, last["latents"].float().cpu(), flagged, seconds, self._plan.report())

    def _now(self) -> float:
        """Once the device has done what it was given."""
        import torch

        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter()

    def _negative(self, given: str | Sequence[str] | None, count: int, guidance_scale: float) -> list[str] | None:
        if given is None:
            return None
        require(
            guidance_scale > 1, "guidance_scale", guidance_scale, "above 1 beside a negative_prompt, which nothing reads otherwise"
        )
        texts = _texts(given, "negative_prompt") * (count if isinstance(given, str) else 1)
        require(len(texts) == count, "negative_prompt", given, f"one text, or {count}, as there are prompts")
        return texts

    def _check_lengths(self, name: str, texts: Sequence[str]) -> None:
        """The library would cut them."""
        tokenizers: list[Any] = [getattr(self.library, part, None) for part in ("tokenizer", "tokenizer_2")]
        for tokenizer in filter(None, tokenizers):
            for text in texts:
                count, most = len(tokenizer(text).input_ids), tokenizer.model_max_length
                if count > most:
                    raise ValueError(f"{name}={text[:40]!r}... has {count} tokens with begin and end, and the model reads {most}")

    def _side(self, name: str, asked: int | None) -> int:
        factor = self.library.vae_scale_factor
        unit = math.lcm(8, factor)
        if asked is None:
            size = self.library.unet.config.sample_size
            sides = size if isinstance(size, list | tuple) and len(size) == 2 else (size, size)
            require(all(isinstance(side, int) for side in sides), name, None, f"given: the sample_size of the UNet is {size!r}")
            asked = sides[name == "width"] * factor
        _check_number(name, asked, int, unit, MAX_SIDE)
        require(asked % unit == 0, name, asked, f"a multiple of {unit}")
        return asked


def _texts(given: Any, name: str) -> list[str]:
    texts = [given] if isinstance(given, str) else list(given) if isinstance(given, list | tuple) else []
    if not 0 < len(texts) <= MAX_IMAGES or not all(isinstance(text, str) and is_unicode(text) for text in texts):
        raise ValueError(
            f"{name}={reprlib.repr(given)} cannot work: it must be a text that UTF-8 can hold, or a list of 1 to {MAX_IMAGES}"
        )
    return texts


def _check_number(name: str, given: Any, kind: type, least: int, most: int) -> None:
    kinds = (int, float) if kind is float else int
    whole = "" if kind is float else "a whole number "
    fits = isinstance(given, kinds) and not isinstance(given, bool) and least <= given <= most
    require(fits, name, given, f"{whole}from {least} to {most}")


def _refuse_unread(config: Any, usual: Any, prefix: str = "") -> None:
    """Raises ValueError for a key that differs from its default, and that nothing here reads."""
    for field in fields(usual):
        key, found, default = prefix + field.name, getattr(config, field.name), getattr(usual, field.name)
        if key in _READ or found == default:
            continue
        if is_dataclass(found):
            _refuse_unread(found, default, f"{key}.")
            continue
        raise ValueError(f"{key}={found!r} cannot work: pipelines that make images have no such thing; leave it out")
