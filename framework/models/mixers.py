"""Layers that keep states in place of a cache, as their models describe them. No tensors: a simulator needs them too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..engine.kv_cache.spec import State

Linears = dict[str, tuple[tuple[int, ...], int]]
"""Part -> (rows of what stands side by side, columns)."""


@dataclass(frozen=True)
class Constant:
    """What a recurrence is bound with, in float32. tensor: its name on disk, in the part's module; columns: None of a vector."""

    tensor: str
    rows: int
    columns: int | None = None


@dataclass(frozen=True)
class Mamba1:
    """num_channels: inner ones, each with a state of ``state_size``; width: of the convolution; step_rank: of what step sizes come
    from; norms: whether step sizes, b and c are normalized, and norm_eps of these."""

    num_channels: int
    state_size: int
    width: int
    step_rank: int
    norms: bool = False
    norm_eps: float = 1e-6

    @property
    def conv_pieces(self) -> tuple[int, ...]:
        """Channels that the convolution sees, by what they are of."""
        return (self.num_channels,)

    @property
    def num_shares(self) -> int:
        """What it can be cut into evenly, by the number of ranks."""
        return self.num_channels

    def share(self, size: int) -> Mamba1:
        """What each of ``size`` ranks has, a divisor of ``num_shares``."""
        return replace(self, num_channels=self.num_channels // size)

    def linears(self, hidden_size: int) -> Linears:
        """Its linear layers."""
        channels, rank, size = self.num_channels, self.step_rank, self.state_size
        return {
            "in_proj": ((channels, channels), hidden_size),
            "x_proj": ((rank, size, size), channels),
            "dt_proj": ((channels,), rank),
            "out_proj": ((hidden_size,), channels),
        }

    def constants(self) -> dict[str, Constant]:
        """Of its recurrence."""
        channels = self.num_channels
        return {
            "a_log": Constant("A_log", channels, self.state_size),
            "dt_bias": Constant("bias", channels),  # of the last projection of step sizes
            "d": Constant("D", channels),
        }

    def norm_sizes(self) -> dict[str, int]:
        """Of the norms inside it."""
        sizes = {"dt_norm": self.step_rank, "b_norm": self.state_size, "c_norm": self.state_size}
        return sizes if self.norms else {}

    def state(self, dtype: str) -> State:
        """What it keeps of a request. dtype: the model's, in which it keeps the convolution's last inputs."""
        return State(((self.width - 1, self.num_channels), (self.num_channels, self.state_size)), (dtype, "float32"))


@dataclass(frozen=True)
class Mamba2:
    """num_groups: of heads that share b and c; step_limit: least and greatest step."""

    num_heads: int
    head_dim: int
    num_groups: int
    state_size: int
    width: int
    step_limit: tuple[float, float] = (0.0, math.inf)

    @property
    def num_channels(self) -> int:
        """Of all heads."""
        return self.num_heads * self.head_dim

    @property
    def conv_pieces(self) -> tuple[int, ...]:
        """As of ``Mamba1``: the heads', b, c."""
        shared = self.num_groups * self.state_size
        return self.num_channels, shared, shared

    @property
    def num_shares(self) -> int:
        """As of ``Mamba1``: a group's heads share b and c, and are normalized together."""
        return self.num_groups

    def share(self, size: int) -> Mamba2:
        """As of ``Mamba1``."""
        return replace(self, num_heads=self.num_heads // size, num_groups=self.num_groups // size)

    def linears(self, hidden_size: int) -> Linears:
        """As of ``Mamba1``."""
        rows = (self.num_channels, *self.conv_pieces, self.num_heads)
        return {"in_proj": (rows, hidden_size), "out_proj": ((hidden_size,), self.num_channels)}

    def constants(self) -> dict[str, Constant]:
        """As of ``Mamba1``."""
        names = {"a_log": "A_log", "dt_bias": "dt_bias", "d": "D"}
        return {name: Constant(tensor, self.num_heads) for name, tensor in names.items()}

    def norm_sizes(self) -> dict[str, int]:
        """As of ``Mamba1``."""
        return {"gated_norm": self.num_channels}

    def state(self, dtype: str) -> State:
        """As of ``Mamba1``."""
        shapes = (self.width - 1, sum(self.conv_pieces)), (self.num_heads, self.head_dim, self.state_size)
        return State(shapes, (dtype, "float32"))


@dataclass(frozen=True)
class GatedDelta:
    """A gated delta net: heads of queries and keys, of which each serves as many of the heads of values."""

    num_k_heads: int
    num_v_heads: int
    k_dim: int
    v_dim: int
    width: int

    @property
    def sizes(self) -> tuple[int, int]:
        """Of all keys, and of all values."""
        return self.num_k_heads * self.k_dim, self.num_v_heads * self.v_dim

    @property
    def conv_pieces(self) -> tuple[int, ...]:
        """As of ``Mamba1``: queries, keys, values."""
        keys, values = self.sizes
        return keys, keys, values

    @property
    def num_shares(self) -> int:
        """As of ``Mamba1``."""
        return self.num_k_heads

    def share(self, size: int) -> GatedDelta:
        """As of ``Mamba1``."""
        return replace(self, num_k_heads=self.num_k_heads // size, num_v_heads=self.num_v_heads // size)

    def linears(self, hidden_size: int) -> Linears:
        """As of ``Mamba1``: q, k, v, gates of the output; rates and decays."""
        keys, values = self.sizes
        return {
            "in_proj": ((keys, keys, values, values), hidden_size),
            "gates_proj": ((self.num_v_heads, self.num_v_heads), hidden_size),
            "out_proj": ((hidden_size,), values),
        }

    def constants(self) -> dict[str, Constant]:
        """As of ``Mamba1``."""
        return {"a_log": Constant("A_log", self.num_v_heads), "dt_bias": Constant("dt_bias", self.num_v_heads)}

    def norm_sizes(self) -> dict[str, int]:
        """As of ``Mamba1``."""
        return {"gated_norm": self.v_dim}

    def state(self, dtype: str) -> State:
        """As of ``Mamba1``."""
        shapes = (self.width - 1, sum(self.conv_pieces)), (self.num_v_heads, self.k_dim, self.v_dim)
        return State(shapes, (dtype, "float32"))


Mixer = Mamba1 | Mamba2 | GatedDelta

MIXER_NORMS = ("dt_norm", "b_norm", "c_norm", "gated_norm")
MIXER_PARTS = ("in_proj", "gates_proj", "conv", "x_proj", "dt_proj", "a_log", "dt_bias", "d", *MIXER_NORMS, "out_proj")
"""Names of the family table."""


def calls(mixer: Mixer) -> list[tuple[str, Mapping[str, Any]]]:
    """The ops that it calls beside its linear layers, with the dims of their cost functions, in order."""
    conv = {"num_channels": sum(mixer.conv_pieces), "width": mixer.width}
    found: list[tuple[str, Mapping[str, Any]]] = [("causal_conv1d", conv)]
    if isinstance(mixer, Mamba1):
        found += [("rms_norm", {"hidden_size": size, "residual": 0}) for size in mixer.norm_sizes().values()]
        found += [("selective_scan", {"num_channels": mixer.num_channels, "state_size": mixer.state_size})]
    elif isinstance(mixer, Mamba2):
        names = ("num_heads", "head_dim", "num_groups", "state_size")
        found += [("ssd_scan", {name: getattr(mixer, name) for name in names})]
        found += [("gated_rms_norm", {"hidden_size": mixer.num_channels})]
    else:
        names = ("num_k_heads", "num_v_heads", "k_dim", "v_dim")
        found += [("gated_delta_rule", {name: getattr(mixer, name) for name in names})]
        found += [("gated_rms_norm", {"hidden_size": mixer.sizes[1]})]
    return found
