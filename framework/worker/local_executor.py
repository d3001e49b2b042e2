"""The executor of this process: one model on one device."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch

from ..clock import Clock
from ..config import EngineConfig
from ..engine.executor import Executor, Handle, LoadedAdapter
from ..engine.kv_cache.memory import cache_blocks, logit_rows, state_rows
from ..engine.kv_cache.spec import ELEMENT_BYTES, CacheGroup, block_bytes, group_layers, own_groups
from ..engine.step import StepInput
from ..logs import memory_size
from ..lora_request import LoRARequest
from ..models.batch import ForwardBatch, GroupBatch, StateBatch
from ..models.binding.checks import check_rank_kernels
from ..models.decoder import Decoder
from ..models.encoder import Encoder
from ..models.expert_balancer import ExpertBalancer
from ..models.expert_map import ExpertMap
from ..models.image_encoder import ImageEncoder
from ..models.load import load_model
from ..models.parallel import Parallel
from ..models.pooling.load import load_heads
from ..models.quantization.table import read_scheme
from ..models.ranks import rank_cache_specs
from ..models.read import ModelInfo
from ..multimodal.sized import largest_image
from ..multimodal.support import images_refusal
from ..plan import AttentionMeta, KernelPlan, LoraMeta, StateMeta
from .adapter_host import AdapterHost
from .cache_memory import allocate_caches, allocate_states, check_cache_fits
from .devices import Capture, Device, graph_sizes, open_device
from .drafting.drafter import Drafter, check_drafter, load_drafter
from .drafting.draws import draft_probs_shape
from .image_embeddings import ImageEmbeddings
from .images import Images
from .pooling.runner import PoolingRunner
from .probes import Probes
from .runner import Runner
from .transfer import device_losses
from .weight_memory import check_weights_fit, nominal_weight_bytes, tensor_bytes

if TYPE_CHECKING:
    from ..models.tower import Tower

_logger = logging.getLogger(__name__)
OPS_OUTSIDE_GRAPHS = (
    "paged_attention_prefill",
    "apply_penalties",
    "sample",
    "filter_logits",
    "verify_draft",
    "gather_logprobs",
    "copy_blocks",
)


class LocalExecutor:
    """Model, caches and runner on one device; a step is computed when it is submitted (and launched, on a GPU)."""

    num_stages = 1

    @classmethod
    def open(cls, config: EngineConfig, model: ModelInfo, clock: Clock) -> Executor:
        if model.pooling is not None and model.pooling.towers is not None:
            from .pooling.towers import TowerExecutor  # slow to import, and needed for few models

            return TowerExecutor(config, model)
        return cls(config, model)

    @staticmethod
    def runs_on(config: EngineConfig) -> tuple[str, str]:
        device = open_device(config.device)
        return device.name, device.arch

    def __init__(self, config: EngineConfig, model: ModelInfo, parallel: Parallel | None = None) -> None:
        """parallel: which rank of several this is; None: there is one."""
        parallel = parallel or Parallel()
        device = open_device(config.device, config.parallel.first_device)
        device.activate()
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        has_tower = model.vision is not None and images_refusal(config) is None
        embeds_images = has_tower and model.encoding is None
        tower_size = 0
        if has_tower:
            from ..models.tower import load_tower, tower_bytes  # slow to import, and needed for few models

            tower_size = tower_bytes(config.model, model)
        self.nominal_weight_bytes = round(nominal_weight_bytes(config, model, parallel)) + tower_size
        check_weights_fit(self.nominal_weight_bytes, model, device)
        if config.speculative_config.place == "device":
            check_drafter(config, model)
        self._pools, self._encoding = model.pooling is not None, model.encoding
        self._most_encoded = model.most_encoded(config.cache.block_size)
        # What passes between stages is no call of a kernel; steps that schedulers take together are recorded by none.
        # Nor does any follow where canvases end.
        self._diffusion = model.diffusion
        self._records = parallel.pp.size == 1 and parallel.ep.size <= parallel.tp.size and self._diffusion is None
        self._recording: tuple[EngineConfig, Device, Capture] | None = None
        self.probes = probes = Probes.of(config, device.torch, model.dtype)
        self.call_times = None if probes is None else probes.times
        self.plan = KernelPlan.from_config(config, device.torch, getattr(torch, model.dtype), device.arch, probes)
        if model.architecture is not None:
            scheme = read_scheme(model.quantization, config.quant)
            check_rank_kernels(self.plan, model.architecture, parallel, scheme, getattr(torch, model.dtype))
        with _phase("weights") as said:
            self._model = load_model(
                config.model,
                model,
                self.plan,
                device.torch,
                parallel,
                config.cache.block_size,
                config.seed,
                config.cache.dtype,
                config.quant,
                config.lora,
                config.scheduler.max_num_batched_tokens if embeds_images else 0,
            )
            self._tower: Tower | ImageEncoder | None = None
            self._encoder: Encoder | None = None
            if has_tower:
                tower = load_tower(config.model, model, self.plan, device.torch, config.seed)
                self._tower = tower if embeds_images else ImageEncoder(tower)
                self._largest_image = largest_image(config, model)
            elif model.encoding is not None and model.encoding.max_images is None:
                from ..models.encoder import load_encoder  # slow to import, and needed for few models

                self._encoder = load_encoder(config.model, model, cast(Decoder, self._model), self.plan, device.torch, config.seed)
            modules = [part.module for part in (self._tower, self._encoder) if part is not None]
            self.weight_bytes = tensor_bytes((self._model, modules))
            said.append(f"{memory_size(self.weight_bytes)} of {model.name} in {model.dtype} on {device.name}")
        self._adapters = None if self._model.lora is None else AdapterHost(config, model, self._model.lora)
        self.groups, self._own_groups = self._groups(config, model, parallel)
        self._model.set_groups(self._own_groups)
        self.vocab_size, self.max_model_len = self._model.vocab_size, self._model.max_model_len
        self._drafter = self._load_drafter(config, model, device.torch)
        self.draft_max_model_len = None if self._drafter is None else self._drafter.max_model_len
        self.drafts_read_ahead = self._drafter is not None and self._drafter.reads_ahead
        self.has_states = model.architecture is not None and model.architecture.has_states
        with _phase("KV cache") as said:
            self.num_blocks = self._fit_blocks(config, device)
            cache_bytes = self.num_blocks * _block_bytes(self._own_groups, self._drafter, config.cache.block_size)
            check_cache_fits(self.num_blocks, cache_bytes, self._state_bytes(config), device)
            caches = allocate_caches(self._own_groups, self.num_blocks, config.cache.block_size, device.torch)
            said.append(f"{self.num_blocks} blocks of {config.cache.block_size} tokens, {memory_size(cache_bytes)}")
            states = allocate_states(self._model.state_specs(), state_rows(config), device.torch)
            if self.has_states:
                kept = f"{config.scheduler.max_num_seqs} requests and {config.cache.state_snapshots} prefixes"
                said.append(f"states of {kept}, {memory_size(self._state_bytes(config))}")
        self.in_flight_steps = device.in_flight_steps
        self.num_drafts = config.speculative_config.num_speculative_tokens
        if self._pools:
            heads = load_heads(config.model, model, self.plan, device.torch, config.seed)
            seats, size = config.scheduler.max_num_seqs, config.cache.block_size
            runner = PoolingRunner(self._model, heads, self.plan, self.groups, caches, states, seats, size, device.torch)
            self._start(config, device, runner.step)
            return
        self._runner = Runner(
            self._model,
            self.plan,
            self._own_groups,
            caches,
            config.scheduler.max_num_seqs,
            config.cache.block_size,
            device.torch,
            config.scheduler.in_flight_steps or self.in_flight_steps,
            config.speculative_config,
            states,
            *self._readers(config, model, device.torch),
            self._most_encoded,
            self._diffusion,
        )
        if self._drafter is not None:
            rows, draw = self._runner.rows, self._runner.sampler.draw_drafts
            self._runner.draft(self._drafter.proposer(self.groups, self.num_blocks, config.cache.block_size, rows, self.plan, draw))
        self._start(config, device, self._runner.step)

    def _start(self, config: EngineConfig, device: Device, step: Callable[[StepInput], Handle]) -> None:
        """Once all is bound: checks the plan, and records what can be recorded."""
        self.plan.check_bound()
        self._step, probes = step, self.probes
        if probes is not None:
            probes.check({kernel.op for kernel in self.plan.bound})
            self._step = probes.around_submit(self._step)
        if not self._pools and self._records and config.graphs.enabled and (capture := device.capture()) is not None:
            probed = capture if probes is None else probes.around_capture(capture)
            self._recording = config, device, probed
            self._capture_graphs(*self._recording)
        _logger.info("kernel plan: %s", ", ".join(f"{op}={found['impl']}" for op, found in self.plan_report().items()))

    def submit(self, step: StepInput) -> Handle:
        with device_losses():
            return self._step(step)

    def watch(self, around: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> None:
        """As ``Runner.watch``."""
        self._runner.watch(around)

    def expert_loads(self) -> dict[int, list[int]]:
        """Layer -> how often each of its experts was chosen here since they moved. Waits for the device."""
        return self._balancer.loads()

    def move_experts(self, wanted: ExpertMap) -> None:
        """Reads those that are to be here and are not. Recordings, which hold the addresses of weights, are made anew."""
        moved = wanted != self._balancer.map
        self._balancer.move(wanted)
        if moved and self._recording is not None:
            self._capture_graphs(*self._recording)

    @property
    def _balancer(self) -> ExpertBalancer:
        assert self._model.balancer is not None, "the configuration asks for it"
        return self._model.balancer

    def plan_report(self) -> dict[str, dict[str, Any]]:
        return self.plan.report()

    def load_adapter(self, request: LoRARequest) -> Future[LoadedAdapter]:
        return self._adapter_host.load(request)

    def drop_adapter(self, key: str) -> None:
        self._adapter_host.drop(key)

    def shutdown(self) -> None:
        if self._adapters is not None:
            self._adapters.shutdown()
        self.__dict__.clear()

    @property
    def _adapter_host(self) -> AdapterHost:
        assert self._adapters is not None, "engines without adapters ask for none"
        return self._adapters

    def _readers(
        self, config: EngineConfig, model: ModelInfo, device: torch.device
    ) -> tuple[Images | None, Encoder | ImageEmbeddings | None]:
        """Of what the runner is given beside tokens: what takes the place of some, and to what layers attend."""
        if self._tower is None:
            return None, self._encoder
        embeddings = ImageEmbeddings(self._tower, config.parallel.num_ranks == 1)
        if model.encoding is not None:
            return None, embeddings
        assert model.vision is not None
        return Images(embeddings, config.scheduler.max_num_seqs, self.max_model_len, device, model.vision), None

    def _load_drafter(self, config: EngineConfig, model: ModelInfo, device: torch.device) -> Drafter | None:
        """None where the host makes drafts, or nobody does."""
        if config.speculative_config.place != "device":
            return None
        with _phase("drafts") as said:
            drafter = load_drafter(config, model, self._model, self.plan, device)
            said.append(f"{memory_size(tensor_bytes(drafter.model))} of {config.speculative_config.model or model.name}")
        return drafter

    @torch.inference_mode()
    def _capture_graphs(self, config: EngineConfig, device: Device, capture: Capture) -> None:
        if self.plan.spec.device == "cpu" and self._model.decides_on_host:
            return
        blockers = self.plan.not_capturable(except_ops=OPS_OUTSIDE_GRAPHS)
        if blockers:
            if self.plan.spec.device != "cpu":  # where launching costs most of a small step; on a CPU few kernels need it
                warnings.warn(
                    f"decode steps run without CUDA graphs, which cannot record {', '.join(blockers)}; choose other kernels, "
                    "or set graphs.enabled=false",
                    stacklevel=3,
                )
            return
        with _phase("recordings") as said:
            sizes = graph_sizes(config, type(device))
            self._runner.capture_graphs(sizes, capture, device.query_lens(self.num_drafts), device.most_padding)
            said.append(f"{len(sizes)} decode steps of up to {sizes[-1]} rows")
        self.plan.recorded = frozenset(kernel.op for kernel in self.plan.bound if kernel.op not in OPS_OUTSIDE_GRAPHS)

    def _groups(
        self, config: EngineConfig, model: ModelInfo, parallel: Parallel
    ) -> tuple[tuple[CacheGroup, ...], tuple[CacheGroup, ...]]:
        """KV groups of the model, and what of them this stage has: which layers share blocks depends on all."""
        if parallel.pp.size == 1:
            groups = group_layers(self._model.cache_specs())
            return groups, groups
        groups = group_layers(rank_cache_specs(model, parallel, config.cache.dtype))
        assert model.architecture is not None
        return groups, own_groups(groups, parallel.pp.part(len(model.architecture.layers)))

    def _fit_blocks(self, config: EngineConfig, device: Device) -> int:
        """As configured, or those that fit the memory budget, the configured one or the device's."""

        def budget() -> int:
            found = device.cache_bytes(lambda: self._forward_null_batch(config, device.torch), config.cache.memory_fraction)
            return found - self._draft_probs_bytes(config) - self._embeddings_bytes(config)

        each = _block_bytes(self._own_groups, self._drafter, config.cache.block_size)
        longest = max(self.max_model_len, self._most_encoded)
        return cache_blocks(config, len(self.groups), longest, each, budget, self._state_bytes(config))

    def _state_bytes(self, config: EngineConfig) -> int:
        return state_rows(config) * sum(spec.row_bytes() for spec in self._model.state_specs().values())

    def _draft_probs_bytes(self, config: EngineConfig) -> int:
        shape = draft_probs_shape(config.speculative_config, config.scheduler.max_num_seqs, self.vocab_size)
        return 0 if shape is None else ELEMENT_BYTES["float32"] * math.prod(shape)

    def _embeddings_bytes(self, config: EngineConfig) -> int:
        """Of images."""
        if self._tower is None:
            return 0
        assert isinstance(self._model, Decoder), "images are read by native models"
        return config.scheduler.encoder_cache * self._model.hidden_size * self._model.dtype.itemsize

    def _forward_null_batch(self, config: EngineConfig, device: torch.device) -> None:
        """Has an encoder read the longest input, or a tower the largest image, then prefills as many tokens as a step can have, in
        the longest prompts; reads and writes nothing but the null block."""
        if self._encoder is not None and self._encoding is not None:
            self._encoder.encode(self._encoder.longest(self._encoding.max_tokens))
        if self._tower is not None and self._largest_image is not None:
            self._tower.encode({name: value.copy() for name, value in self._largest_image.items()})
        size, num_tokens = config.cache.block_size, config.scheduler.max_num_batched_tokens
        longest = min(num_tokens, self.max_model_len)
        starts = [*range(0, num_tokens, longest), num_tokens]
        caches = allocate_caches(self._own_groups, 2, size, device)
        cu_q = torch.tensor(starts, dtype=torch.int32, device=device)
        table = torch.zeros(len(starts) - 1, -(-longest // size), dtype=torch.int32, device=device)
        skip = torch.full((num_tokens,), -1, dtype=torch.int64, device=device)
        lengths = cu_q.diff()
        groups = [GroupBatch(skip, None, AttentionMeta(cu_q, lengths, table, longest, longest)) for _ in self.groups]
        ids = torch.zeros(num_tokens, dtype=torch.int64, device=device)
        rows = torch.zeros(
            logit_rows(config, self._diffusion.canvas_size if self._diffusion else 1), dtype=torch.int64, device=device
        )
        positions = torch.arange(num_tokens, device=device) % longest
        batch = ForwardBatch(ids, positions, 0, groups, caches, rows)
        if self.has_states:
            nobody, starting = torch.full_like(lengths, -1), torch.ones_like(lengths, dtype=torch.bool)
            meta = StateMeta(cu_q, nobody, starting, longest)
            batch.states = StateBatch(meta, allocate_states(self._model.state_specs(), 1, device))
        if self._model.lora is not None:
            batch.lora, batch.lora_of_logits = (LoraMeta(torch.zeros_like(some, dtype=torch.int32)) for some in (ids, rows))
        self._model.begin_step(batch)
        if self._model.lockstep is not None:
            self._model.lockstep.num_tokens = num_tokens
        hidden = self._model.forward(batch)
        if not self._pools and self._model.is_last:
            self._model.logits(hidden[rows], batch.lora_of_logits).float()


@contextmanager
def _phase(name: str) -> Iterator[list[str]]:
    """Logs one line of the start, with its seconds and what was appended to the list."""
    said: list[str] = []
    start_s = time.perf_counter()
    yield said
    _logger.info("%s: %s, in %.1f s", name, ", ".join(said), time.perf_counter() - start_s)


def _block_bytes(groups: tuple[CacheGroup, ...], drafter: Drafter | None, block_size: int) -> int:
    """Of all that is kept of a block's tokens."""
    return block_bytes(groups, block_size) + block_size * (0 if drafter is None else drafter.token_bytes())
