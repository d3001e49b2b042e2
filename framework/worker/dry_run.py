"""Every kind of step that an engine of a configuration runs, on a model without weights: what a kernel pack is compiled from.

Model, caches and runner are the engine's own, their tensors lie uninitialized on the CPU, and the plan's kernels do not run
(see ``TargetPlan``). So the launches have the shapes, strides and options of the real ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ..config import EngineConfig, LoraConfig, ModelConfig, QuantConfig
from ..engine.kv_cache.memory import state_rows
from ..engine.kv_cache.spec import group_layers
from ..engine.step import NewRequest, StepInput
from ..models.binding.binder import Binder
from ..models.load import open_slots
from ..models.parallel import Parallel
from ..models.protocol import Model
from ..models.quantization.table import read_scheme
from ..models.read import ModelInfo, read_model
from ..models.weights import EmptyWeights
from ..plan import KernelPlan
from ..sampling_params import SamplingParams
from .cache_memory import allocate_caches, allocate_states
from .devices import Cuda, Replay, graph_sizes
from .drafting.drafter import check_drafter, load_drafter
from .runner import Runner
from .target_plan import TargetPlan

CPU = torch.device("cpu")
PLAIN = SamplingParams(temperature=0.0, seed=0)
FULL = SamplingParams(
    temperature=0.8, top_k=50, top_p=0.9, min_p=0.05, seed=0, repetition_penalty=1.1, logit_bias={1: 1.0}, min_tokens=1, logprobs=5
)
UNMASKED = SamplingParams(temperature=0.8, seed=0, repetition_penalty=1.1)  # penalties alone, without a mask of allowed tokens


class _ZeroIntegers(TorchFunctionMode):
    """Inside, uninitialized integers are 0: what no kernel wrote is used as an index all the same."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (torch.empty, torch.empty_like, torch.Tensor.new_empty) and not out.is_floating_point():
            out.zero_()
        return out


@torch.inference_mode()
def dry_run(config: EngineConfig, target: str, probe: bool = False) -> int:
    """Builds the engine of ``config`` (its block size settled) for ``target`` and runs its steps; returns their number. ``probe``:
    other sizes of the same kinds, which must not need other kernels. Raises ValueError for models that only the transformers
    library can run."""
    info = read_model(config.model)
    info.check_generates("a kernel pack")
    device, block_size, num_seats = Cuda(), config.cache.block_size, config.scheduler.max_num_seqs
    plan = TargetPlan.of(config, target, getattr(torch, info.dtype))
    model = _empty_model(
        config.model, info, plan, CPU, Parallel(), block_size, config.seed, config.cache.dtype, config.quant, config.lora
    )
    groups = group_layers(model.cache_specs())
    model.set_groups(groups)
    caches = allocate_caches(groups, 2, block_size, CPU)
    spec, in_flight_steps = config.speculative_config, config.scheduler.in_flight_steps or device.in_flight_steps
    states = allocate_states(model.state_specs(), state_rows(config), CPU)
    runner = Runner(model, plan, groups, caches, num_seats, block_size, CPU, in_flight_steps, spec, states)
    if spec.place == "device":
        check_drafter(config, info)
        drafter = load_drafter(config, info, model, plan, CPU, _empty_model)
        runner.draft(drafter.proposer(groups, 2, block_size, runner.rows, plan, runner.sampler.draw_drafts))
    plan.check_bound()
    num_steps = 0
    with _ZeroIntegers():
        for step in _steps(config, model.max_model_len, len(groups), probe):
            runner.step(step)
            num_steps += 1
            if config.lora.enabled:
                for request in step.new:
                    request.lora_slot = 0
                runner.step(step)
                num_steps += 1
        if config.graphs.enabled:  # last: from then on decodes replay, while mixed steps run as above
            sizes, query_lens = graph_sizes(config, Cuda), device.query_lens(spec.num_speculative_tokens)
            runner.capture_graphs(sizes, _run_once, query_lens)
            num_steps += len(sizes) * len(query_lens) * (1 + config.lora.enabled)
    return num_steps


def _empty_model(
    config: ModelConfig,
    info: ModelInfo,
    plan: KernelPlan,
    device: torch.device,
    parallel: Parallel,
    block_size: int,
    seed: int = 0,
    cache_dtype: str = "auto",
    quant: QuantConfig | None = None,
    lora: LoraConfig | None = None,
) -> Model:
    """In place of ``load_model``."""
    if info.architecture is None:
        raise ValueError(
            f"model {config.name!r} runs through the transformers library ({info.reason}); kernels can be packed for native models "
            "only"
        )
    quant = quant or QuantConfig()
    weights = EmptyWeights(device, getattr(torch, info.dtype), read_scheme(info.quantization, quant))
    expand = config.latent_prefill == "expanded"
    slots = open_slots(info, plan, device, lora)
    return Binder(
        info, info.architecture, weights, plan, device, parallel, block_size, cache_dtype, quant.fuse, expand, slots
    ).build()


def _run_once(run: Replay) -> Replay:
    run()
    return run


def _steps(config: EngineConfig, max_len: int, num_groups: int, probe: bool) -> Iterator[StepInput]:
    """Prompts and batches of decodes of every power of two up to the limits, mixed steps, every way to sample; with drafts to check
    and to make, where the engine speculates."""
    limit = min(config.scheduler.max_num_batched_tokens, max_len - 1)
    size = config.cache.block_size
    shift = 3 if probe else 0
    spec = config.speculative_config
    num_drafts, on_device = spec.num_speculative_tokens, spec.place == "device"

    def request(seat: int, length: int, computed: int, params: SamplingParams) -> NewRequest:
        blocks = [[1] * -(-length // size)] * num_groups
        return NewRequest(seat, str(seat), [0] * length, length - bool(computed), computed, blocks, params)

    def step(*rows: tuple[int, int], params: SamplingParams = PLAIN, num_logits: int = 1) -> StepInput:
        """Rows of (tokens computed before, tokens in this step)."""
        new = [request(seat, before + now, before, params) for seat, (before, now) in enumerate(rows)]
        seats = list(range(len(rows)))
        found = StepInput(0, seats, [now for _, now in rows], [num_logits] * len(rows), new, seats)
        if num_drafts:
            found.num_computed = [before for before, _ in rows]
            found.drafts = None if on_device else [[0] * (num_logits - 1) for _ in rows]
            found.num_proposals = num_drafts if on_device else 0
        return found

    prompts = [*_powers(limit), limit]
    batches = [*_powers(config.scheduler.max_num_seqs), config.scheduler.max_num_seqs]
    contexts = sorted({min(n + shift, max_len - 1) for n in (1, size, 5 * size, 16 * size, max_len - 1)})
    for num_tokens in prompts:
        num_tokens = max(1, num_tokens - shift)
        yield step((0, num_tokens))
        if size + num_tokens < max_len:
            yield step((size, num_tokens))  # behind a cached prefix
        yield step((contexts[0], 1), (0, max(1, num_tokens - 1)))
    for batch in batches:
        yield step(*[(contexts[0], 1)] * max(1, batch - shift))
        if num_drafts:
            yield step(*[(contexts[0], 1 + num_drafts)] * max(1, batch - shift), num_logits=1 + num_drafts)
    for context in contexts:
        yield step((context, 1))
        yield step((context, 1), (context, 1), params=FULL)
    for params in (FULL, UNMASKED):
        yield step((0, min(limit, 2 * size)), params=params)
        if num_drafts:
            yield step((size, 1 + num_drafts), (size, 1 + num_drafts), params=params, num_logits=1 + num_drafts)
    copies = step((1, 1))
    copies.copies = [(group, 0, 1) for group in range(num_groups)]
    copies.snapshots = [(0, 0)] * (config.cache.state_snapshots > 0)
    yield copies


def _powers(limit: int) -> list[int]:
    return [1 << exponent for exponent in range(limit.bit_length()) if 1 << exponent <= limit]
