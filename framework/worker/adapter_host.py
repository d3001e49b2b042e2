"""Adapters in the host's memory, read beside the steps."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import torch

from ..config import EngineConfig
from ..engine.executor import LoadedAdapter
from ..lora_request import LoRARequest
from ..models.lora.adapter import adaptable_parts
from ..models.lora.peft import read_adapter
from ..models.lora.slots import LoraSlots, lora_dtype
from ..models.read import ModelInfo


class AdapterHost:
    """Of one rank: reads adapters in a thread of its own, one after the other, and keeps this rank's share of them."""

    def __init__(self, config: EngineConfig, model: ModelInfo, slots: LoraSlots) -> None:
        assert model.architecture is not None, "others have no slots"
        self._config, self._model, self._slots = config, model, slots
        self._parts = adaptable_parts(model.architecture, config.lora.target_modules)
        self._family, self._dtype = model.architecture.family, lora_dtype(config.lora, getattr(torch, model.dtype))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kernelswap-adapters")
        # A thread that computes with several has a team of its own, for ever: OpenMP, with more threads than processors, would put
        # those of every step to sleep between any two kernels.
        num_threads = self._thread.submit(torch.get_num_threads).result()  # from then on the thread's own
        self._thread.submit(torch.set_num_threads, 1).result()
        torch.set_num_threads(num_threads)  # of all others, which that call was for, too

    def load(self, request: LoRARequest) -> Future[LoadedAdapter]:
        """As ``HoldsAdapters.load_adapter``."""
        return self._thread.submit(self._read, request)

    def drop(self, key: str) -> None:
        """As ``HoldsAdapters.drop_adapter``."""
        self._slots.drop(key)

    def shutdown(self) -> None:
        """Begins to read no more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _read(self, request: LoRARequest) -> LoadedAdapter:
        base = None if self._config.model.load_format == "dummy" else self._model.folder
        max_rank = self._config.lora.max_rank
        adapter = read_adapter(request.lora_path, self._parts, self._family, max_rank, self._dtype, base)
        return LoadedAdapter(adapter.key, adapter.rank, self._slots.add(adapter))
