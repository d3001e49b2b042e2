"""Rotary position embedding: what a config says about it, and the frequencies that follow.

Kinds: default (RoFormer, arXiv 2104.09864), linear (arXiv 2306.15595), dynamic (NTK-aware), yarn (arXiv 2309.00071),
llama3 (Llama 3.1 config), longrope (arXiv 2402.13753); each on the whole head or a leading part of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KINDS = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
SCALING = (
    *("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"),
    *("attention_factor", "mscale", "mscale_all_dim", "alpha"),
)
NEEDED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("long_factor", "short_factor"),
}
"""Parameters of a kind that have no default."""


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of a layer.

    rotary_dim    leading elements of a head that rotate
    max_position  ``max_position_embeddings`` of the config
    parameters    of the kind, as in the config (factor, original_max_position_embeddings, ...)
    """

    kind: str
    theta: float
    rotary_dim: int
    max_position: int
    parameters: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def axes(self) -> list[int]:
        """Of each rotated pair, by which of a token's three positions (time, row, column) it turns; empty: a token has one."""
        return [axis % 3 for axis, count in enumerate(self.parameters.get("mrope_section") or ()) for _ in range(count)]

    def max_len(self) -> int:
        """Longest sequence that this kind of scaling is meant for."""
        factor = self.parameters.get("factor") or 1.0
        if self.kind in ("linear", "dynamic"):
            return int(self.max_position * factor)
        if self.kind == "yarn":
            return max(self.max_position, int(self._original() * factor))
        return self.max_position

    def inverse_frequencies(self, max_len: int) -> tuple[list[float], float]:
        """Radians per position of each rotated pair, and the factor on cos and sin.

        dynamic and longrope depend on the length of a sequence. A cached key cannot be rotated again, so the choice is made
        once, for ``max_len``, the longest sequence that the engine admits.
        """
        half = range(0, self.rotary_dim, 2)
        if self.kind == "dynamic":
            factor, length = self.parameters["factor"], max(max_len, self.max_position)
            stretch = self.parameters.get("alpha") or factor * length / self.max_position - (factor - 1)
            theta = self.theta * stretch ** (self.rotary_dim / (self.rotary_dim - 2))
            return [theta ** (-i / self.rotary_dim) for i in half], 1.0
        plain = [self.theta ** (-i / self.rotary_dim) for i in half]
        if self.kind == "linear":
            return [f / self.parameters["factor"] for f in plain], 1.0
        if self.kind == "llama3":
            return [self._llama3(f) for f in plain], 1.0
        if self.kind == "yarn":
            return self._yarn(plain), self._attention_factor()
        if self.kind == "longrope":
            factors = self.parameters["long_factor" if max_len > self._original() else "short_factor"]
            return [f / s for f, s in zip(plain, factors, strict=True)], self._attention_factor()
        return plain, 1.0

    def _original(self) -> int:
        return int(self.parameters.get("original_max_position_embeddings") or self.max_position)

    def _llama3(self, frequency: float) -> float:
        """Long waves are stretched by ``factor``, short ones are kept, those between are interpolated."""
        p = self.parameters
        turns = self._original() * frequency / (2 * math.pi)
        low, high = p["low_freq_factor"], p["high_freq_factor"]
        keep = min(max((turns - low) / (high - low), 0.0), 1.0)
        return (1 - keep) * frequency / p["factor"] + keep * frequency

    def _yarn(self, plain: list[float]) -> list[float]:
        """Interpolates where a pair turns less than beta_slow times over the original length, keeps it above beta_fast."""
        p = self.parameters

        def pair(turns: float) -> float:
            return self.rotary_dim * math.log(self._original() / (turns * 2 * math.pi)) / (2 * math.log(self.theta))

        low, high = pair(p.get("beta_fast") or 32), pair(p.get("beta_slow") or 1)
        if p.get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.rotary_dim - 1)
        width = (high - low) or 0.001
        ramps = [min(max((i - low) / width, 0.0), 1.0) for i in range(len(plain))]
        return [f / self._factor() * r + f * (1 - r) for f, r in zip(plain, ramps)]

    def _factor(self) -> float:
        return self.parameters.get("factor") or self.max_position / self._original()

    def _attention_factor(self) -> float:
        p, factor = self.parameters, self._factor()
        if p.get("attention_factor") is not None:
            return float(p["attention_factor"])
        if factor <= 1:
            return 1.0
        if self.kind == "longrope":
            return math.sqrt(1 + math.log(factor) / math.log(self._original()))
        if p.get("mscale") and p.get("mscale_all_dim"):
            return (0.1 * p["mscale"] * math.log(factor) + 1) / (0.1 * p["mscale_all_dim"] * math.log(factor) + 1)
        return 0.1 * math.log(factor) + 1


def read_rope(config: Mapping[str, Any], head_dim: int, layer_type: str) -> Rope:
    """The rotary embedding that a config.json asks for in layers of ``layer_type``.

    Understands ``rope_parameters`` (one for all layers, or one per layer type) and the older ``rope_theta``, ``rope_scaling``,
    ``partial_rotary_factor`` or ``rotary_dim``, and ``rope_local_base_freq`` (theta of windowed layers, which are not scaled).
    Where both are given the older ones are overrides, and win. ``default_theta`` and ``default_local_theta`` come from the family.
    """
    given: Mapping[str, Any] = config.get("rope_parameters") or {}
    per_type = "full_attention" in given
    p = dict(given.get(layer_type) or {}) if per_type else dict(given)
    if layer_type == "sliding_attention" and (per_type or config.get("rope_local_base_freq") or "default_local_theta" in config):
        theta = config.get("rope_local_base_freq") or p.get("rope_theta") or config.get("default_local_theta")
    else:
        p.update(config.get("rope_scaling") or {})
        theta = config.get("rope_theta") or p.get("rope_theta") or config.get("default_theta")
    kind = p.get("rope_type") or p.get("type") or "default"
    if kind == "mrope":  # as older configs of Qwen2-VL call what ``mrope_section`` says
        kind = "default"
    if "long_factor" in p:  # earlier names of it are "su" and "yarn"
        kind = "longrope"
    if kind not in KINDS:
        raise ValueError(f"the config asks for rope_type={kind!r}; available are {', '.join(KINDS)}")
    if "original_max_position_embeddings" not in p and config.get("original_max_position_embeddings"):
        p["original_max_position_embeddings"] = config["original_max_position_embeddings"]
    partial = p.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    theta = theta or 10000.0
    numbers = {"rope_theta": theta, "partial_rotary_factor": partial, **{name: p[name] for name in SCALING if p.get(name)}}
    for name, found in numbers.items():
        if not _is_positive(found):
            raise ValueError(f"the config has {name}={found!r}, expected a positive number")
    rotary_dim = config.get("rotary_dim") or int(head_dim * partial)
    if (sections := p.get("mrope_section")) is not None and not _are_sections(sections, rotary_dim // 2):
        raise ValueError(
            f"the config has mrope_section={str(sections)[:80]}, expected counts that add up to {rotary_dim // 2} pairs"
        )
    if rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
        raise ValueError(f"the config rotates {rotary_dim} of a head's {head_dim} elements, expected an even number of them")
    if missing := [name for name in NEEDED.get(kind, ()) if not p.get(name)]:
        raise ValueError(f"the config asks for rope_type={kind!r} without {', '.join(missing)}")
    for name in ("long_factor", "short_factor") if kind == "longrope" else ():
        if not isinstance(p[name], list | tuple) or len(p[name]) != rotary_dim // 2 or not all(map(_is_positive, p[name])):
            raise ValueError(f"the config has {name}={str(p[name])[:80]}, expected {rotary_dim // 2} positive numbers")
    return Rope(kind, float(theta), rotary_dim, int(config["max_position_embeddings"]), p)


def _are_sections(found: object, num_pairs: int) -> bool:
    return isinstance(found, list | tuple) and all(type(count) is int and count > 0 for count in found) and sum(found) == num_pairs


def _is_positive(found: object) -> bool:
    return isinstance(found, int | float) and not isinstance(found, bool) and 0 < found < math.inf
