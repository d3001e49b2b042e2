"""The executor of this process: one model on one device."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from ..config import EngineConfig
from ..engine.kv_cache.spec import block_bytes, group_layers
from ..engine.step import StepInput
from ..models.batch import ForwardBatch, GroupBatch
from ..models.builder import load_model, model_dtype
from ..models.parallel import Parallel
from ..plan import AttentionMeta, KernelPlan
from .cache_memory import allocate_caches
from .decode_graphs import CudaGraphCapture
from .runner import Runner, StepHandle
from .transfer import device_losses

DEFAULT_CPU_CACHE_BYTES = 1 << 30
OPS_OUTSIDE_GRAPHS = ("paged_attention_prefill", "apply_penalties", "sample", "gather_logprobs", "copy_blocks")


class LocalExecutor:
    """Model, caches and runner on one device; a step is computed when it is submitted (and launched, on a GPU)."""

    num_drafts = 0

    def __init__(self, config: EngineConfig) -> None:
        device = resolve_device(config.device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # streams, graphs and Triton's launches belong to the current device
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        self.plan = KernelPlan.from_config(config, device, model_dtype(config.model))
        self._model = load_model(
            config.model, self.plan, device, Parallel(), config.cache.block_size, config.seed, config.cache.dtype
        )
        self.groups = group_layers(self._model.cache_specs())
        self._model.set_groups(self.groups)
        self.vocab_size, self.max_model_len = self._model.vocab_size, self._model.max_model_len
        self.num_blocks = config.cache.num_blocks or self._fit_blocks(config, device)
        caches = allocate_caches(self.groups, self.num_blocks, config.cache.block_size, device)
        self._runner = Runner(
            self._model, self.plan, self.groups, caches, config.scheduler.max_num_seqs, config.cache.block_size, device
        )
        self.in_flight_steps = 1 if device.type == "cpu" else 2
        if device.type == "cuda" and config.graphs.enabled:
            self._capture_graphs(config)

    def submit(self, step: StepInput) -> StepHandle:
        with device_losses():
            return self._runner.step(step)

    def plan_report(self) -> dict[str, dict[str, Any]]:
        return self.plan.report()

    def shutdown(self) -> None:
        self.__dict__.clear()

    @torch.inference_mode()
    def _capture_graphs(self, config: EngineConfig) -> None:
        blockers = self.plan.not_capturable(except_ops=OPS_OUTSIDE_GRAPHS)
        if blockers:
            warnings.warn(
                f"decode steps run without CUDA graphs, which cannot record {', '.join(blockers)}; choose other kernels, "
                "or set graphs.enabled=false",
                stacklevel=3,
            )
            return
        sizes = [size for size in config.graphs.batch_sizes if size <= config.scheduler.max_num_seqs]
        self._runner.capture_graphs(sizes or [config.scheduler.max_num_seqs], CudaGraphCapture())

    def _fit_blocks(self, config: EngineConfig, device: torch.device) -> int:
        """Blocks that fit the memory budget: what is configured, else 1 GiB on a CPU, or what a step of the largest size
        leaves free on a GPU; never more than all seats can fill."""
        size = config.cache.block_size
        each = block_bytes(self.groups, size)
        budget = config.cache.memory_bytes
        if budget is None:
            budget = DEFAULT_CPU_CACHE_BYTES if device.type == "cpu" else self._free_gpu_bytes(config, device)
        useful = len(self.groups) * config.scheduler.max_num_seqs * -(-self.max_model_len // size) + 1
        fitting = budget // each
        if fitting < 2:
            raise ValueError(
                f"the KV cache's memory budget of {budget} bytes holds {fitting} blocks of {each} bytes, but 2 are needed: "
                "raise cache.memory_bytes (or cache.memory_fraction), or lower cache.block_size"
            )
        return int(min(fitting, useful))

    @torch.inference_mode()
    def _free_gpu_bytes(self, config: EngineConfig, device: torch.device) -> int:
        torch.cuda.reset_peak_memory_stats(device)
        self._forward_null_batch(config, device)
        torch.cuda.synchronize(device)
        held = torch.cuda.memory_allocated(device)
        activations = torch.cuda.max_memory_allocated(device) - held
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
        return int(free - activations - (1 - config.cache.memory_fraction) * total)

    def _forward_null_batch(self, config: EngineConfig, device: torch.device) -> None:
        """Prefills as many tokens as a step can have, in the longest prompts; reads and writes nothing but the null block."""
        size, num_tokens = config.cache.block_size, config.scheduler.max_num_batched_tokens
        longest = min(num_tokens, self.max_model_len)
        starts = [*range(0, num_tokens, longest), num_tokens]
        caches = allocate_caches(self.groups, 2, size, device)
        cu_q = torch.tensor(starts, dtype=torch.int32, device=device)
        table = torch.zeros(len(starts) - 1, -(-longest // size), dtype=torch.int32, device=device)
        skip = torch.full((num_tokens,), -1, dtype=torch.int64, device=device)
        lengths = cu_q.diff()
        groups = [GroupBatch(skip, None, AttentionMeta(cu_q, lengths, table, longest, longest)) for _ in self.groups]
        ids = torch.zeros(num_tokens, dtype=torch.int64, device=device)
        rows = torch.zeros(config.scheduler.max_num_seqs, dtype=torch.int64, device=device)
        positions = torch.arange(num_tokens, device=device) % longest
        batch = ForwardBatch(ids, positions, 0, groups, rows)
        self._model.begin_step(batch)
        self._model.logits(self._model.forward(batch, caches)[rows]).float()


def resolve_device(name: str) -> torch.device:
    """ "auto" is the first GPU, or the CPU without one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={name} was asked for, but torch {torch.__version__} finds no GPU here; use device=cpu or auto")
    return device
