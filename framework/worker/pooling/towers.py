"""The executor of models with towers, which keep nothing between steps: a prompt is a row, and ends with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers

from ...config import EngineConfig
from ...engine.executor import Handle
from ...engine.kv_cache.spec import ELEMENT_BYTES, CacheGroup
from ...engine.step import NewRequest, StepInput
from ...models.library import library_config, num_library_weights
from ...models.pooling.heads import Heads
from ...models.pooling.towers import load_towers
from ...models.read import ModelInfo
from ...plan import KernelPlan
from ..devices import open_device
from ..probes import Probes
from ..transfer import device_losses
from ..weight_memory import check_weights_fit, tensor_bytes
from .runner import PooledHandle


class TowerExecutor:
    """As LocalExecutor, without a cache. Prompts are computed one by one, so that nothing depends on what is beside them."""

    groups: tuple[CacheGroup, ...] = ()
    num_blocks, num_stages, in_flight_steps, num_drafts = 2, 1, 1, 0
    draft_max_model_len: int | None = None
    drafts_read_ahead = has_states = False

    def __init__(self, config: EngineConfig, model: ModelInfo) -> None:
        assert model.pooling is not None
        device = open_device(config.device)
        device.activate()
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        if model.quantization is not None or config.quant.scheme != "none":
            raise ValueError(
                f"model {model.name!r} cannot have quantized weights: its towers are loaded as floats; set quant.scheme=none"
            )
        found = library_config(config.model, model.folder, model.config["model_type"])
        self.nominal_weight_bytes = num_library_weights(config.model, found, transformers.AutoModel) * ELEMENT_BYTES[model.dtype]
        check_weights_fit(self.nominal_weight_bytes, model, device)
        self.probes = Probes.of(config, device.torch, model.dtype)
        self.call_times = None if self.probes is None else self.probes.times
        self.plan = KernelPlan.from_config(config, device.torch, getattr(torch, model.dtype), device.arch, self.probes)
        self._towers = load_towers(config.model, model, found, self.plan, device.torch, config.seed)
        self.weight_bytes = tensor_bytes(self._towers)
        self._heads = Heads(model.pooling, [])
        self.vocab_size, self.max_model_len = model.config["vocab_size"], model.max_model_len
        self.plan.check_bound()
        self._step: Callable[[StepInput], Handle] = self._run
        if self.probes is not None:
            self.probes.check({kernel.op for kernel in self.plan.bound})
            self._step = self.probes.around_submit(self._run)

    def submit(self, step: StepInput) -> Handle:
        with device_losses():
            return self._step(step)

    def plan_report(self) -> dict[str, dict[str, Any]]:
        return self.plan.report()

    def shutdown(self) -> None:
        self.__dict__.clear()

    @torch.inference_mode()
    def _run(self, step: StepInput) -> PooledHandle:
        new = {request.seat: request for request in step.new}
        prompts = [new[seat] for seat in step.seats]  # whole ones: nothing of a prompt is left for another step
        if not prompts:
            return PooledHandle(step.step_id, {})
        embeddings = torch.stack([self._embedding(prompt) for prompt in prompts])
        params = [prompt.pooling for prompt in prompts if prompt.pooling is not None]
        return PooledHandle(step.step_id, dict(enumerate(self._heads(embeddings, params))))

    def _embedding(self, prompt: NewRequest) -> torch.Tensor:
        assert prompt.pooling is not None, "an engine that pools takes nothing else"
        if prompt.pooling.pixels is not None:
            return self._towers.image(torch.from_numpy(prompt.pooling.pixels))
        return self._towers.text(prompt.token_ids)
