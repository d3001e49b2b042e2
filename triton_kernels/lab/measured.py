"""Times that other projects measured on devices of the table, as a bar; README.md in ``measured/`` says where they come from."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "measured"
DEFAULTS = {"kv_bytes": 2, "weight_bits": 16, "window": 0, "group_rows": 0}
"""What tells kernels apart, and what it is where dims leave it out. Activations are in 16 bits, but those of ``gemm_fp8``."""
_BY_TOKENS = ("linear", "gemm_fp8", "moe_experts")
"""Ops for which requests make no difference."""
_BY_STATE = ("causal_conv1d", "gated_delta_rule")
"""Ops for which it makes none how many tokens are before those of a request, but whether there are any."""


@dataclass(frozen=True)
class Measured:
    """One call of a kernel. dims: as in an op's cases; ``num_reqs`` requests of ``q_len`` new tokens and ``ctx_len`` in all."""

    op: str
    kernel: str
    dims: Mapping[str, float]
    num_reqs: int
    q_len: int
    ctx_len: int
    us: float

    @property
    def name(self) -> str:
        """What to call the shape in tables."""
        sizes = " ".join(f"{key}={value:g}" for key, value in self.dims.items())
        tokens = (
            f"{self.num_reqs * self.q_len} tokens" if self.op in _BY_TOKENS else f"{self.num_reqs} x {self.q_len} of {self.ctx_len}"
        )
        return f"{tokens}, {sizes}"


@cache
def measurements(device: str) -> tuple[Measured, ...]:
    """All rows of a device (a name of the device table); none if there are none."""
    path = FOLDER / f"{device}.csv"
    if not path.is_file():
        return ()
    with path.open(newline="") as file:
        return tuple(_read(row) for row in csv.DictReader(file))


def _read(row: Mapping[str, str]) -> Measured:
    dims = {key: float(value) for key, _, value in (part.partition("=") for part in row["dims"].split())}
    num_reqs, q_len, ctx_len = (int(row[name]) for name in ("num_reqs", "q_len", "ctx_len"))
    return Measured(row["op"], row["kernel"], dims, num_reqs, q_len, ctx_len, float(row["us"]))


def same_shape(device: str, op: str, dims: Mapping[str, float], q_lens: Sequence[int], ctx_lens: Sequence[int]) -> dict[str, float]:
    """Microseconds by kernel, of the rows with the shape of a case."""
    shape, lengths = {**DEFAULTS, **dims}, {*zip(q_lens, ctx_lens or q_lens)}
    if op in _BY_STATE:
        lengths = {(q_len, min(ctx_len, q_len + 1)) for q_len, ctx_len in lengths}
    found = {}
    for row in measurements(device):
        if row.op != op or any(shape.get(key) != value for key, value in {**DEFAULTS, **row.dims}.items()):
            continue
        tokens = row.num_reqs * row.q_len == sum(q_lens)
        if tokens and (op in _BY_TOKENS or (row.num_reqs == len(q_lens) and lengths == {(row.q_len, row.ctx_len)})):
            found[row.kernel] = row.us
    return found
