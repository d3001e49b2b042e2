"""Times of operators as measured: a calibration, loaded by name or file, and timers bound to an op's dims.

``kernelswap calibrate`` fits one (``framework.study.calibration``); what it is made of is in ``operator_model``.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from .calibration_file import numbers, read_model, texts, write_model
from .operator_model import BoundModel, OperatorModel
from .operators import CostFunction, Operator, Runs, Work, by_requests, by_tokens, number_format, operator

Lengths = int | Sequence[int] | np.ndarray
FOLDER = Path(__file__).parent / "calibrations"
SUFFIX = ".json.gz"
VERSION = 1
_WRITTEN = ("device", "source", "launch_floor_s", "copy_bytes_s", "ceilings")
_SAME = {"float16": "bfloat16", "half": "bfloat16"}
"""Dtypes of the same speed."""


_SIMILAR = {
    "gemm_fp8": ("gemm_int8", "linear"),
    "gemm_int8": ("gemm_fp8", "linear"),
    "gemm_w4a16": ("gemm_w8a16", "linear"),
    "gemm_w8a16": ("gemm_w4a16", "linear"),
}
"""Of which ops an op takes the times where it was not measured in any format, the most similar first."""


class Device(Protocol):
    """Ceilings of a device of the table."""

    @property
    def name(self) -> str: ...
    @property
    def copy_bytes_s(self) -> float: ...
    @property
    def flops_s(self) -> Mapping[str, float]: ...


class OperatorTimer:
    """Seconds of calls of one op with fixed dims. ``calls`` and ``extrapolated`` count; the latter are those outside of what was
    measured. Which method is for an op, ``sizes`` says; calling works for all. after: what was measured in place of it, in words;
    empty if it was measured itself."""

    def __init__(
        self, model: BoundModel, spec: Operator, cost: CostFunction | None, dims: Mapping[str, float], after: str = ""
    ) -> None:
        self._model, self._spec, self._cost, self._dims, self.after = model, spec, cost, dims, after
        self._window = dims.get("window") or math.inf
        self._by_tokens: dict[int, tuple[float, bool]] = {}
        self.calls = self.extrapolated = 0
        if spec.sizes is by_requests:  # with one new token each, work is linear in requests, and in the keys of each
            one, longer, two = (self._work([run]) for run in ((1, 1, 1), (1, 1, 2), (2, 1, 1)))
            self._request = [b - a for a, b in zip(one[:2], two[:2])]
            self._whole = [a - b for a, b in zip(one[:2], self._request)]
            self._key = [b - a for a, b in zip(one[:2], longer[:2])]
            self._tiles = two.tiles - one.tiles

    def __call__(self, q_lens: Lengths, ctx_lens: Lengths) -> float:
        """``q_lens``: new tokens per request, ``ctx_lens``: its tokens in the cache with the new ones; lists or arrays, or numbers.

        Tables hold equal requests. Decode counts as its number of requests at their mean context, which keeps flops and bytes (with
        a window: of what each sees of it). Prefill keeps its own flops and bytes; what was measured beside them is read where as
        many equal whole prompts have as many pairs of query and key (``operators.by_prompts``), and where that is less than one
        prompt, where fewer heads have a whole one (``Operator.spread``): no table has chunks behind a context.
        """
        if self._spec.sizes is by_tokens:
            return self.of_tokens(q_lens if isinstance(q_lens, int) else int(np.sum(q_lens)))
        if self._spec.sizes is by_requests:
            contexts = np.atleast_1d(ctx_lens)
            count, total = len(contexts), np.sum(q_lens)
            seen = np.minimum(contexts, self._window) if self._window < math.inf else contexts
            if total == count:
                return self.of_decode(count, np.add.reduce(contexts) / count, np.add.reduce(seen) / count)
            return self._count(self._model.seconds(self._work([(count, total / count, np.add.reduce(contexts) / count)])))
        queries, contexts = (np.atleast_1d(lengths).tolist() for lengths in (q_lens, ctx_lens))
        return self._count(self._model.seconds(self._work([(1, *pair) for pair in zip(queries, contexts)])))

    def of_tokens(self, num_tokens: int) -> float:
        """Of an op for which requests make no difference (GEMMs, experts, collectives): at so many tokens or elements. A number
        that came before is looked up."""
        found = self._by_tokens.get(num_tokens)
        if found is None:
            found = self._by_tokens[num_tokens] = self._model.seconds(self._work([(1, num_tokens, num_tokens)]))
        return self._count(found)

    def of_decode(self, num_requests: int, mean_ctx_len: float, mean_seen: float | None = None) -> float:
        """Of attention with one new token per request. mean_seen: mean number of tokens within the window; default: as if all
        contexts were equal."""
        seen = min(mean_ctx_len, self._window) if mean_seen is None else mean_seen
        flops = self._whole[0] + num_requests * (self._request[0] + self._key[0] * (seen - 1))
        moved = self._whole[1] + num_requests * (self._request[1] + self._key[1] * (seen - 1))
        sizes = math.log2(num_requests), math.log2(mean_ctx_len)
        return self._count(self._model.seconds(Work(flops, moved, num_requests * self._tiles, sizes)))

    def _work(self, runs: Runs) -> Work:
        return self._spec.measure(self._cost, self._dims, runs)

    def _count(self, found: tuple[float, bool]) -> float:
        self.calls += 1
        self.extrapolated += found[1]
        return found[0]


@dataclass(frozen=True)
class Calibration:
    """Operator times of one device.

    device          its name, as in the device table where it is in there
    source          which tables were measured, and where
    transferred     they are another device's, scaled by the ceilings of the device table
    launch_floor_s  least time of any kernel that was measured, and
    copy_bytes_s    bandwidth that streaming kernels reach: for ops without rows
    ceilings        of the device by the device table (copy_bytes_s, and flops per second by number format); None if it is not there
    """

    device: str
    source: str
    models: tuple[OperatorModel, ...]
    launch_floor_s: float
    copy_bytes_s: float
    ceilings: Mapping[str, float] | None
    costs: Mapping[str, CostFunction] = field(repr=False)
    transferred: bool = False

    @staticmethod
    def names() -> list[str]:
        """The calibrations that come with the package."""
        return sorted(path.name.removesuffix(SUFFIX) for path in FOLDER.glob(f"*{SUFFIX}"))

    @classmethod
    def load(cls, name_or_path: str, costs: Mapping[str, CostFunction]) -> Calibration:
        """One of ``names()``, or a file that ``kernelswap calibrate`` wrote. ``costs``: op -> cost function. Raises ValueError."""
        packaged = FOLDER / f"{name_or_path}{SUFFIX}"
        path = packaged if packaged.is_file() else Path(name_or_path)
        if not path.is_file():
            raise ValueError(f"no calibration {name_or_path!r}: there are {', '.join(cls.names())}, and no such file")
        try:
            text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            found = json.loads(text)
            if (version := found["version"]) == VERSION:
                models = tuple(read_model(entry, f"models[{i}]") for i, entry in enumerate(found["models"]))
                texts("", found, "device", "source")
                numbers("launch_floor_s", found["launch_floor_s"], at_least=0.0)
                numbers("copy_bytes_s", found["copy_bytes_s"])
                if found["ceilings"] is not None:
                    for name, value in {"copy_bytes_s": None, "bf16": None, **found["ceilings"]}.items():
                        numbers(f"ceilings.{name}", value)
                return cls(models=models, costs=costs, **{name: found[name] for name in _WRITTEN})
        except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, RecursionError) as error:
            said = error if isinstance(error, ValueError) else repr(error)
            raise ValueError(f"{path} is no calibration that `kernelswap calibrate` wrote ({said})") from error
        raise ValueError(f"{path} has version {version} of the calibrations' format, expected {VERSION}: make it again")

    def save(self, path: Path) -> None:
        """Writes the file that :meth:`load` reads, compressed if its name ends in .gz. The same calibration, the same bytes."""
        entries = [write_model(model) for model in self.models]
        whole = {"version": VERSION, **{name: getattr(self, name) for name in _WRITTEN}, "models": entries}
        text = json.dumps(whole, separators=(",", ":")).encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)

    def timer(self, op: str, dtype: str, dims: Mapping[str, float]) -> OperatorTimer | None:
        """None where nothing was measured for the op, dtype and format.

        dtype  of the activations
        dims   as the op's cost function takes them, with those that ``operators.OPERATORS`` adds: for ``moe_experts`` the whole
               layer's ``num_experts`` and ``top_k`` with ``ep`` ranks that share them, and ``skew`` (the exponent of the experts'
               popularity; left out: every choice is as likely); for collectives ``num_ranks``, q_lens = [elements]
        """
        spec, dtype = operator(op, dims), _SAME.get(dtype, dtype)
        model = self.bound(op, dtype, spec.format(dims, dtype), spec.point(dims))
        return None if model is None else OperatorTimer(model, spec, self.costs.get(op), dims)

    def similar(self, op: str, dtype: str, dims: Mapping[str, float], flops_s: Mapping[str, float]) -> OperatorTimer | None:
        """Where there is no ``timer``: its work at the shares of the device's ceilings that the most similar op reached which was
        measured, and with what was measured there beside physics. That is the op itself in its nearest dtype and format, else the
        first in ``_SIMILAR``; None if there is none. flops_s: the device's ceilings by number format."""
        spec, dtype = operator(op, dims), _SAME.get(dtype, dtype)
        formats, point, wanted = spec.format(dims, dtype), spec.point(dims), number_format(op, dtype)

        def difference(model: OperatorModel) -> tuple[bool, float, float]:
            names = {*formats, *model.formats}
            apart = sum(abs(formats.get(name, 0) - model.formats.get(name, 0)) for name in names)
            return model.dtype != dtype, apart, model.distance(point)

        for name in (op, *_SIMILAR.get(op, ())):
            found = [each for each in self._models(name, point) if number_format(name, each.dtype) in flops_s]
            if found and wanted in flops_s:
                model = min(found, key=difference)
                own = flops_s[number_format(name, model.dtype)]
                physics = model.physics.scaled(flops_s[wanted] / own if math.isfinite(own) else 1.0, 1.0)
                after = " ".join([name, model.dtype, *(f"{key}={value:g}" for key, value in model.formats.items())])
                return OperatorTimer(replace(model, physics=physics).bound(point), spec, self.costs.get(op), dims, after)
        return None

    def bound(self, op: str, dtype: str, formats: Mapping[str, float], point: Sequence[float]) -> BoundModel | None:
        """The model of a shape, by its coordinates (``operators.Operator.point``): where several parts of a range were measured,
        that with the nearest shape."""
        found = [each for each in self._models(op, point) if (each.dtype, each.formats) == (dtype, formats)]
        return min(found, key=lambda model: model.distance(point)).bound(point) if found else None

    def _models(self, op: str, point: Sequence[float]) -> list[OperatorModel]:
        """Of an op, for shapes of so many dims: an op without an entry in ``operators.OPERATORS`` has those of its rows."""
        return [model for model in self.models if model.op == op and len(model.low) == len(point)]

    def on(self, device: Device) -> Calibration:
        """Transferred to another device of the table: what was fitted and measured, at the shares of its own device's ceilings
        that it reached there. Floors stay as they are. Raises ValueError where this calibration's device has no known ceilings."""
        if device.name == self.device:
            return self
        own = self.ceilings
        if own is None:
            raise ValueError(
                f"the calibration of {self.device} cannot be transferred to {device.name}: {self.device} was not in the table"
            )
        memory = device.copy_bytes_s / own["copy_bytes_s"]

        def moved(model: OperatorModel) -> OperatorModel:
            wanted = number_format(model.op, model.dtype)
            unit = wanted if wanted in own and wanted in device.flops_s else "bf16"
            return replace(model, physics=model.physics.scaled(device.flops_s[unit] / own[unit], memory))

        source = f"{self.source}; transferred from {self.device} by the device table"
        models = tuple(moved(model) for model in self.models)
        return replace(
            self, device=device.name, source=source, models=models, transferred=True, copy_bytes_s=self.copy_bytes_s * memory
        )
