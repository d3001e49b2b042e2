"""The models of a calibration as JSON, and back, with what no fit can have written refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .kriging import KERNELS, Kriging
from .operator_model import OperatorModel
from .operators import OPERATORS, operator
from .physics import Physics

_STEP = 0.002
"""Values of a field are kept as multiples of this."""
_MOST = 20.0
"""Of a value, a logarithm: e^20 times what physics says is no measurement."""


def write_model(model: OperatorModel) -> dict[str, Any]:
    """What :func:`read_model` reads."""
    field = model.field
    return {
        "op": model.op,
        "dtype": model.dtype,
        "formats": model.formats,
        "impl": model.impl,
        "physics": model.physics.numbers(),
        "nodes": [np.round(axis, 6).tolist() for axis in model.nodes],
        "gridded": model.gridded,
        "range": [np.round(model.low, 6).tolist(), np.round(model.high, 6).tolist()],
        "field": field
        and {
            "kernel": field.kernel,
            "noise": float(f"{field.noise:.6g}"),
            "lengths": [float(f"{length:.6g}") for length in field.lengths],
            "points": np.round(field.points, 6).tolist(),
            "values": np.round(field.values / _STEP).astype(int).ravel().tolist(),
        },
    }


def read_model(entry: Mapping[str, Any], place: str) -> OperatorModel:
    """place: of the entry in its file. Raises ValueError, which names the op and the field, for a number that cannot be; KeyError
    and TypeError for an entry of another form."""
    texts(place, entry, "op", "dtype", "impl")
    place = f"{place} ({entry['op']})"
    for name, value in zip(Physics.__dataclass_fields__, entry["physics"], strict=True):
        numbers(f"{place}: physics.{name}", value)
    for name, value in dict(entry["formats"]).items():
        numbers(f"{place}: formats.{name}", value, at_least=0.0)
    nodes = tuple(numbers(f"{place}: nodes", axis, 1, at_least=-np.inf) for axis in entry["nodes"])
    low, high = (numbers(f"{place}: range", side, 1, at_least=-np.inf) for side in entry["range"])
    num_dims = len(OPERATORS[entry["op"]].shape) if entry["op"] in OPERATORS else len(low)
    num_sizes = len(operator(entry["op"], {}).sizes({}, [(1, 1, 1)]))
    if not len(low) == len(high) == num_dims or len(nodes) != num_sizes or any((np.diff(axis) <= 0).any() for axis in nodes):
        raise ValueError(f"{place}: expected a range of {num_dims} dims, and {num_sizes} rising lists of nodes")
    field = None if entry["field"] is None else _read_field(entry, place, nodes, num_dims)
    names = (entry["op"], entry["dtype"], entry["formats"], entry["impl"])
    return OperatorModel(*names, Physics(*entry["physics"]), field, nodes, bool(entry["gridded"]), low, high)


def _read_field(entry: Mapping[str, Any], place: str, nodes: tuple[np.ndarray, ...], num_dims: int) -> Kriging:
    stored, gridded = entry["field"], entry["gridded"]
    points = numbers(f"{place}: field.points", stored["points"], 2, at_least=-np.inf)
    values = numbers(f"{place}: field.values", stored["values"], 1, at_least=-np.inf) * _STEP
    lengths = numbers(f"{place}: field.lengths", stored["lengths"], 1)
    noise = numbers(f"{place}: field.noise", stored["noise"])
    width = num_dims if gridded else num_dims + len(nodes)
    columns = int(np.prod([len(axis) for axis in nodes])) if gridded else 1
    if points.shape[1] != width or len(lengths) != width or len(values) != len(points) * columns:
        raise ValueError(f"{place}: expected field.points of {width} coordinates, as many lengths, and {columns} values per point")
    if np.abs(values).max() > _MOST:
        raise ValueError(f"{place}: field.values reach {np.abs(values).max() / _STEP:g}, expected {_MOST / _STEP:g} at most")
    if stored["kernel"] not in KERNELS:
        raise ValueError(f"{place}: field.kernel is {stored['kernel']!r}, expected {' or '.join(KERNELS)}")
    return Kriging(points, values.reshape(len(points), columns), lengths, float(noise), stored["kernel"])


def numbers(name: str, value: Any, num_axes: int = 0, at_least: float | None = None) -> np.ndarray:
    """A number, or lists of them with so many axes: finite, and above 0 unless ``at_least`` is given. Raises ValueError."""
    try:
        found = np.array(value)
    except ValueError:
        found = np.array(None)
    works = found.ndim == num_axes and found.dtype.kind in "if" and found.size and np.isfinite(found).all()
    if not works or (found <= 0 if at_least is None else found < at_least).any():
        bound = "above 0" if at_least is None else f"of {at_least:g} or more" if np.isfinite(at_least) else "and finite"
        raise ValueError(f"{name} is {str(value)[:60]}, expected {('a number', 'numbers', 'rows of numbers')[num_axes]} {bound}")
    return found.astype(float)


def texts(place: str, entry: Mapping[str, Any], *names: str) -> None:
    """Raises ValueError for a value that is no text."""
    for name in names:
        if not isinstance(entry[name], str):
            raise ValueError(f"{place}: {name} is {entry[name]!r}, expected text".removeprefix(": "))
