"""The kernel plan: the only door from the engine to the kernels."""

from __future__ import annotations

import contextlib
import copy
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

import triton_kernels
from triton_kernels.attention_meta import AttentionMeta, LayerKV
from triton_kernels.call_shapes import described_ops, shape_reader
from triton_kernels.group import Group, ProcessGroup, ThreadGroup
from triton_kernels.impls._shared.recording import Arena, Recording, is_recording, record, run_between
from triton_kernels.lora_meta import LoraMeta
from triton_kernels.rng import STREAM_ACCEPT, STREAM_DRAFT, STREAM_TARGET, row_uniform
from triton_kernels.spec import device_arch
from triton_kernels.state_meta import StateMeta

from .config import EngineConfig
from .interpreter import enable_interpreter

__all__ = [
    "STREAM_ACCEPT",
    "STREAM_DRAFT",
    "STREAM_TARGET",
    "Arena",
    "AttentionMeta",
    "BoundKernel",
    "Group",
    "KernelPlan",
    "LayerKV",
    "LoraMeta",
    "ProcessGroup",
    "Recording",
    "StateMeta",
    "ThreadGroup",
    "count_compilations",
    "described_ops",
    "device_arch",
    "device_model",
    "fold_choices",
    "is_recording",
    "may_fuse",
    "op_costs",
    "preferred_block_size",
    "record",
    "refuse_named_kernels",
    "row_uniform",
    "run_between",
    "shape_reader",
]


_LIBRARIES = ("transformers", "diffusers")
"""Whose modules run what is no op of ours."""


class Probes(Protocol):
    """Who wraps kernels in hooks as they are bound."""

    def around_kernel(self, op: str, impl: str, arguments: Callable[[tuple[Any, ...]], Mapping[str, Any]], run: Any) -> Any:
        """``run`` with hooks, or as it is. arguments: from those of a call to all of the op's, by name; of tensors that are bound
        the shapes alone."""


class BoundKernel:
    """An impl bound to one layer, which counts its calls. ``choice``: its name with the options that were asked for; ``chosen``: by
    what (name, default, auto), and what speaks against trusting it, if anything does; ``note``: what a reader must know of it."""

    __slots__ = ("calls", "choice", "chosen", "impl", "note", "op", "run", "version")

    def __init__(self, op: str, impl: Any, choice: str, chosen: str, run: Any, version: str, note: str) -> None:
        self.op, self.impl, self.choice, self.chosen, self.run, self.version = op, impl, choice, chosen, run, version
        self.note = note
        self.calls = 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        return self.run(*args)

    def begin_step(self, meta: Any) -> None:
        """Lets the impl prepare what the layers of a KV group share in this step."""
        begin = getattr(self.run, "begin_step", None)
        if begin is not None:
            begin(meta)


class KernelPlan:
    """Which impl serves which op in one engine; hands out bound kernels and reports what ran. recorded: the ops whose calls in
    decode steps are recorded once and replayed, as the executor says."""

    def __init__(
        self,
        choices: Mapping[str, str],
        plugins: Sequence[str],
        device: torch.device,
        dtype: torch.dtype,
        interpret: bool = False,
        tuned: str = "off",
        arch: str | None = None,
        probes: Probes | None = None,
    ) -> None:
        _check_origin()
        if interpret:
            enable_interpreter()
        from triton_kernels.registry import Registry
        from triton_kernels.resolve import Choices, resolve
        from triton_kernels.spec import Spec
        from triton_kernels.tuning import TunedTables

        self.tables = TunedTables.load(tuned)
        self.registry = Registry.load(plugins)
        self._check_plugins(set(plugins))
        self.choices = Choices(self.registry, choices)
        self.spec = Spec(device.type, device_arch(device) if arch is None else arch, dtype, interpret)
        self.bound: list[BoundKernel] = []
        self._probes = probes
        self.recorded: frozenset[str] = frozenset()
        self.library: dict[str, set[str]] = {}  # another library -> classes of the modules that it runs
        self._replaced: dict[str, str] = {}  # op -> the fused op that does its work
        for op, choice in self.choices.named.items():  # before anything is loaded
            if not set(choice.names) <= {"auto", *self.registry.impls(op)}:
                resolve(self.registry, op, self.spec, choice)

    def _check_plugins(self, asked: set[str]) -> None:
        """What was asked for must load; what an installed package brings, and cannot, is worth a warning."""
        self.registry.impls(next(iter(self.registry.ops)))  # loads
        for failure in self.registry.failures:
            if failure.source in asked:
                raise ValueError(f"plugins: {failure.source!r} could not be loaded: {failure.error}")
            warnings.warn(f"kernels of {failure.source} are missing: {failure.error}", stacklevel=4)

    @classmethod
    def from_config(
        cls, config: EngineConfig, device: torch.device, dtype: torch.dtype, arch: str | None = None, probes: Probes | None = None
    ) -> KernelPlan:
        """arch: None = as torch says; probes: None = nothing is wrapped."""
        return cls(config.kernels, config.plugins, device, dtype, config.interpret, config.tuned, arch, probes)

    def for_dtype(self, dtype: torch.dtype) -> KernelPlan:
        """The same plan for layers of another dtype; what it binds is reported with the rest."""
        other = copy.copy(self)
        other.spec = replace(self.spec, dtype=dtype)
        return other

    def bind(
        self,
        op: str,
        weights: Mapping[str, torch.Tensor | None] | None = None,
        params: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
        note: str = "",
    ) -> BoundKernel:
        """Binds ``op`` for one layer. ``weights`` and ``params`` are the op's bound arguments; ``facts`` adds what the spec must
        know beyond them (head_dim, page_size, ...); ``note`` goes into the report. Raises NoKernelError if the choice
        cannot serve."""
        weights, params = dict(weights or {}), dict(params or {})
        impl, choice, chosen, spec = self._resolve(op, {**weights, **params}, facts)
        tuned = self.tables.lookup(op, impl.name, impl.options, spec).content_hash
        version = f"{impl.version}+tuned.{tuned}" if tuned else impl.version
        run = self._bind(impl, spec, weights, params, choice.options)
        if self._probes is not None:
            run = self._probes.around_kernel(op, impl.name, _arguments(self.registry.ops[op].call_args, {**weights, **params}), run)
        chosen = f"{chosen} ({impl.unproven})" if impl.unproven else chosen
        kernel = BoundKernel(op, impl, str(choice), chosen, run, version, note)
        self.bound.append(kernel)
        return kernel

    def check(self, op: str, bound: Mapping[str, Any]) -> None:
        """Raises NoKernelError if ``bind`` would, of these weights (which may be on the meta device) and params together."""
        self._resolve(op, bound, None)

    def check_named(self, called: Collection[str], argument: str) -> None:
        """Of the ops that bind an argument of that name: raises NoKernelError for one that was chosen by name and is not called."""
        from triton_kernels.resolve import NoKernelError

        for op, choice in self.choices.named.items():
            if argument in self.registry.ops[op].bind_args and op not in called:
                of_these = f"; of its kind it calls {', '.join(sorted(called))}" if called else ""
                raise NoKernelError(
                    f"kernels.{op}={choice} would never run: this engine never calls it{of_these}. Set kernels.{op}=auto, "
                    "or leave it out."
                )

    def rebind(self, kernel: BoundKernel, bind: Callable[[], BoundKernel]) -> None:
        """Drops what ``kernel`` runs, with its tensors, and has it run what ``bind`` binds."""
        kernel.run = None
        found = bind()
        self.bound.remove(found)
        kernel.run = found.run

    def drop(self, kernel: BoundKernel) -> None:
        """Forgets a kernel that nothing will call."""
        self.bound.remove(kernel)

    def bind_fused(
        self,
        op: str,
        replaced: Mapping[str, Mapping[str, Any]],
        weights: Mapping[str, torch.Tensor | None],
        params: Mapping[str, Any],
        facts: Mapping[str, Any],
    ) -> BoundKernel | None:
        """Binds ``op``, which does the work of the ops in ``replaced`` (with their bound arguments), or returns None if those are
        to run: as they are chosen, else if one of them has an impl of higher priority than ``op`` has."""
        if not self.fuses(op, replaced, weights, params, facts):
            return None
        self._replaced |= dict.fromkeys(replaced, op)
        return self.bind(op, weights, params, facts)

    def fuses(
        self,
        op: str,
        replaced: Mapping[str, Mapping[str, Any]],
        weights: Mapping[str, torch.Tensor | None],
        params: Mapping[str, Any],
        facts: Mapping[str, Any],
    ) -> bool:
        """Whether ``bind_fused`` binds ``op``."""
        assert set(replaced) <= set(self.registry.ops[op].fuses), f"{op} does not do the work of all of {', '.join(replaced)}"
        wish = self.choices.fuse(op, replaced)
        if wish is None:
            priority = self._resolve(op, {**weights, **params}, facts)[0].priority
            wish = all(self._resolve(other, bound, facts)[0].priority <= priority for other, bound in replaced.items())
        return bool(wish)

    def bind_quantizing(
        self,
        op: str,
        weights: Mapping[str, torch.Tensor | None],
        params: Mapping[str, Any],
        static_scale: torch.Tensor | None,
        quantized: Mapping[str, Any],
    ) -> BoundKernel | None:
        """Binds ``op`` so that it gives what ``quantize_activation`` would make of its output (``quantized``: out_dtype and
        granularity), or returns None if that is to run: as it is chosen by name, or no impl of ``op`` that is as good as the one
        without can do it."""
        from triton_kernels.resolve import NoKernelError

        plain = {**weights, **params}
        weights, params = {**weights, "static_scale": static_scale}, {**params, **quantized}
        if "quantize_activation" in self.choices.named or not set(quantized) <= set(self.registry.ops[op].bind_args):
            return None
        try:
            priority = self._resolve(op, {**weights, **params}, None)[0].priority
        except NoKernelError:
            return None
        if priority < self._resolve(op, plain, None)[0].priority:
            return None
        return self.bind(op, weights, params, note="quantizes its output")

    def bind_tied(self, linear: BoundKernel, table: torch.Tensor, params: Mapping[str, Any]) -> BoundKernel:
        """Binds ``embedding`` to the table that ``linear`` is bound to: to the form in which linear has packed it, so that nobody
        holds a second one, unless there is none or the embedding that is chosen cannot read it."""
        from triton_kernels.resolve import NoKernelError

        panels = getattr(linear.run, "panels", None)
        if panels is not None:
            with contextlib.suppress(NoKernelError):
                return self.bind("embedding", {"weight": panels}, params, note="reads the table as linear packed it")
        return self.bind("embedding", {"weight": table}, params)

    def runs_in_library(self, model: torch.nn.Module) -> None:
        """Notes which of the modules of ``model`` are classes of another library, that runs them."""
        for module in model.modules():
            library = type(module).__module__.partition(".")[0]
            if library in _LIBRARIES:
                self.library.setdefault(library, set()).add(type(module).__name__)

    def check_bound(self) -> None:
        """Once all is bound: raises NoKernelError for a kernel that was chosen by name and that nothing will call."""
        from triton_kernels.resolve import NoKernelError

        bound = {kernel.op for kernel in self.bound}
        for op, choice in self.choices.named.items():
            if op in bound:
                continue
            if fused := self._replaced.get(op):
                why = f"kernels.{fused}={self.choices.of(fused)} does its work in every layer of this model"
                instead = f"kernels.{op}=auto, or kernels.{fused}=none to run the ops one by one"
            else:
                why = f"this model never calls it; it calls {', '.join(sorted(bound))}"
                instead = f"kernels.{op}=auto, or leave it out"
            raise NoKernelError(f"kernels.{op}={choice} would never run: {why}. Set {instead}.")

    def _resolve(self, op: str, bound: Mapping[str, Any], facts: Mapping[str, Any] | None) -> tuple[Any, Any, str, Any]:
        """(impl, choice, what chose it, spec)."""
        spec = self.spec.with_facts(**{**self.registry.ops[op].static_facts(bound), **(facts or {})})
        return *self.choices.resolve(op, spec), spec

    def _bind(self, impl: Any, spec: Any, weights: dict[str, Any], params: dict[str, Any], options: Mapping[str, Any]) -> Any:
        return impl.bind(spec, weights, params, options, self.tables)

    def not_capturable(self, *, except_ops: Collection[str] = ()) -> list[str]:
        """Bound impls (``op:impl``) of which no recording can be made on this device."""
        flag = "cpu_graph" if self.spec.device == "cpu" else "cuda_graph"
        return sorted({f"{k.op}:{k.impl.name}" for k in self.bound if not getattr(k.impl.flags, flag) and k.op not in except_ops})

    def report(self) -> dict[str, dict[str, Any]]:
        """op -> what was bound for it, what chose it (name, default, auto), how often it was called (replays are no calls), and
        whether its calls in decode steps are recorded. An op served by several impls lists them all.
        ``library``: the modules that another library runs, which are no op of ours."""
        report: dict[str, dict[str, Any]] = {}
        for kernel in self.bound:
            entry = report.setdefault(kernel.op, {"impl": [], "chosen": [], "origin": [], "version": [], "calls": 0})
            entry["recorded"] = kernel.op in self.recorded
            found = (kernel.choice, kernel.chosen, kernel.impl.origin, kernel.version)
            for key, value in zip(("impl", "chosen", "origin", "version"), found):
                if value not in entry[key]:
                    entry[key].append(value)
            if kernel.note and kernel.note not in entry.setdefault("note", []):
                entry["note"].append(kernel.note)
            entry["calls"] += kernel.calls
        if self.library:
            names = sorted(self.library)
            kind = {"impl": names, "chosen": ["library"], "origin": names, "version": [""]}
            report["library"] = {**kind, "calls": 0, "recorded": False, "note": sorted(set().union(*self.library.values()))}
        return {op: {k: "+".join(v) if isinstance(v, list) else v for k, v in entry.items()} for op, entry in report.items()}


def _arguments(names: Sequence[str], bound: Mapping[str, Any]) -> Callable[[tuple[Any, ...]], dict[str, Any]]:
    """From the arguments of a call to all of them, by name; bound tensors are not kept, their shapes are."""
    shapes = {name: torch.empty_like(v, device="meta") if isinstance(v, torch.Tensor) else v for name, v in bound.items()}
    return lambda args: {**shapes, **dict(zip(names, args))}


@contextlib.contextmanager
def count_compilations() -> Iterator[list[str]]:
    """The names of the kernels that Triton compiles inside, as they come; of a warm engine there are none."""
    if "triton" not in sys.modules:  # no kernel of the plan is Triton's
        yield []
        return
    from triton_kernels.compile_counter import CompileCounter

    with CompileCounter() as counter:
        yield counter.compiled


def fold_choices(config: EngineConfig, kernels: Mapping[str, str] | None = None) -> EngineConfig:
    """A copy for the engine to own. Over the choices in ``config`` go those of the surrounding ``override(...)`` blocks, so that
    they survive process borders, and over these the explicit ``kernels``."""
    from triton_kernels.resolve import active_overrides

    own, explicit = copy.deepcopy(config), kernels or {}
    if not isinstance(explicit, Mapping):
        raise ValueError(f"kernels={explicit!r} cannot work: it must map ops to choices, as in {{'sample': 'torch'}}")
    own.kernels |= {**active_overrides(), **explicit}
    for op, choice in own.kernels.items():
        if not isinstance(choice, str):
            raise ValueError(f"kernels.{op}={choice!r} cannot work: a choice is text, the name of an impl or auto")
    return own


def refuse_named_kernels(config: EngineConfig) -> None:
    """For an executor that runs no kernels: raises NoKernelError for one that is chosen by name, ValueError for a wrong choice."""
    from triton_kernels.resolve import NoKernelError

    for op, choice in _read_choices(config).named.items():
        raise NoKernelError(
            f"kernels.{op}={choice} would never run: executor.kind={config.executor.kind} runs no kernels. Leave it out, or set "
            "executor.kind=local (kernels.default, and none for a fused op, may stay)."
        )


def may_fuse(config: EngineConfig, op: str) -> bool:
    """Whether the choices let the fused ``op`` run, for a simulator, where nothing is bound."""
    return _read_choices(config).of(op).name != "none"


def _read_choices(config: EngineConfig) -> Any:
    from triton_kernels.registry import Registry
    from triton_kernels.resolve import Choices

    return Choices(Registry.load(config.plugins), config.kernels)


def preferred_block_size(arch: str) -> int:
    """Tokens per block of the cache that the attention kernels of an architecture are made for."""
    return 64 if arch.startswith("sm_") and int(arch[3:]) >= 90 else 16


def op_costs() -> dict[str, Any]:
    """op -> its cost function ``(dims, q_lens, ctx_lens) -> Cost(flops, bytes)``, for simulators."""
    from triton_kernels.ops import OPS

    return {name: op.cost for name, op in OPS.items()}


def device_model(name: str) -> Any:
    """A device of the table by name (``triton_kernels.devices.Device``). Raises ValueError for one that is not in it."""
    from triton_kernels.devices import DEVICE_MODELS

    if name not in DEVICE_MODELS:
        raise ValueError(f"executor.device={name!r} is not in the device table; it has {', '.join(sorted(DEVICE_MODELS))}")
    return DEVICE_MODELS[name]


def _check_origin() -> None:
    """Another public package is called triton_kernels too."""
    ours = Path(__file__).resolve().parent.parent / "triton_kernels"
    found = Path(str(triton_kernels.__file__)).resolve().parent
    if not hasattr(triton_kernels, "register") or not (found / "registry.py").is_file():
        raise ImportError(
            f"the package triton_kernels that was imported from {found} is not Kernelswap's (expected at {ours}): "
            "uninstall the other one (pip uninstall triton_kernels) or put Kernelswap first on sys.path"
        )
