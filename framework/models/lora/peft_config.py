"""What adapter_config.json says of an adapter's modules, ranks and scales."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .adapter import is_target

ALL_LINEAR = "all-linear"
_WITHOUT_EFFECT = (
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "exclude_modules",
    "fan_in_fan_out",  # of a layer that stores its weight transposed: A and B are stored alike
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
)
"""Fields that are read, or say nothing of what a trained adapter computes."""
_REFUSED = {
    "use_dora": "DoRA, which is not served: train it with use_dora=False",
    "bias": "biases of its own, which are not served: train it with bias='none'",
    "lora_bias": "biases of its own, which are not served: train it with lora_bias=False",
    "modules_to_save": "whole modules beside it, which are not served: train it without modules_to_save",
    "target_parameters": "parameters of no linear layers, as experts, which are not served: train it with target_modules alone",
    "trainable_token_indices": "embeddings of its own, which are not served: train it without trainable_token_indices",
    "layer_replication": "layers more than its base, which are not served: train it without layer_replication",
    "alora_invocation_tokens": "an activation by tokens (aLoRA), which is not served: train it without alora_invocation_tokens",
}
_MOST = 3.4e38
"""Of float32."""
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")


@dataclass(frozen=True)
class PeftConfig:
    """As in peft: rank and alpha of a module are those of the first pattern that its name ends in, else the general ones."""

    path: Path
    r: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rslora: bool
    target_modules: str | list[str]
    exclude_modules: str | list[str]
    layers: list[int] | None
    layers_pattern: list[str]

    @classmethod
    def of(cls, found: Mapping[str, Any], path: Path) -> PeftConfig:
        """Raises ValueError for what is no LoRA, and for whatever it says that would not be done."""
        if (kind := found.get("peft_type")) != "LORA":
            raise ValueError(f"{path} has peft_type={kind!r}, and only LORA is served")
        for name, value in found.items():
            if not value or (name == "bias" and value == "none"):
                continue
            if name in _REFUSED:
                raise ValueError(f"{path} has {name}={value!r}: the adapter has {_REFUSED[name]}")
            if name not in _WITHOUT_EFFECT:
                raise ValueError(f"{path} has {name}={value!r}, which this version does not know: leave it out")
        init = found.get("init_lora_weights")
        if isinstance(init, str) and init.lower().startswith(_CHANGES_BASE):
            raise ValueError(
                f"{path} has init_lora_weights={init!r}, by which the base model was changed: save the adapter with "
                "path_initial_model_for_weight_conversion, so that it is one of the model as it was"
            )
        layers, patterns = found.get("layers_to_transform"), found.get("layers_pattern") or []
        ranks, alphas = found.get("rank_pattern") or {}, found.get("alpha_pattern") or {}
        config = cls(
            path,
            found.get("r", 8),
            found.get("lora_alpha", 8),
            ranks,
            alphas,
            bool(found.get("use_rslora")),
            found.get("target_modules") or [],
            found.get("exclude_modules") or [],
            [layers] if isinstance(layers, int) else layers or None,
            [patterns] if isinstance(patterns, str) else patterns,
        )
        config._check_types()
        return config

    def _check_types(self) -> None:
        def listed(value: Any, kind: type) -> bool:
            return isinstance(value, list) and all(type(one) is kind for one in value)

        ranks = [self.r, *(self.rank_pattern.values() if isinstance(self.rank_pattern, dict) else ["no object"])]
        alphas = [self.alpha, *(self.alpha_pattern.values() if isinstance(self.alpha_pattern, dict) else ["no object"])]
        for name, value, fits, expected in (
            ("r, rank_pattern", ranks, all(type(r) is int and r > 0 for r in ranks), "positive numbers"),
            ("lora_alpha, alpha_pattern", alphas, all(type(a) in (int, float) and abs(a) <= _MOST for a in alphas), "numbers"),
            ("target_modules", self.target_modules, _is_names(self.target_modules), "a pattern or a list of names"),
            ("exclude_modules", self.exclude_modules, _is_names(self.exclude_modules), "a pattern or a list of names"),
            ("layers_to_transform", self.layers, self.layers is None or listed(self.layers, int), "numbers of layers"),
            ("layers_pattern", self.layers_pattern, listed(self.layers_pattern, str), "names of lists of layers"),
        ):
            if not fits:
                raise ValueError(f"{self.path} has {name}={value!r}, expected {expected}")
        for pattern in [
            *self.rank_pattern,
            *self.alpha_pattern,
            *(x for x in (self.target_modules, self.exclude_modules) if isinstance(x, str)),
        ]:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{self.path} has the pattern {pattern!r}, which is no regular expression: {error}") from None

    def rank(self, module: str) -> int:
        """Of a module's adapter."""
        return self.rank_pattern.get(_pattern(self.rank_pattern, module), self.r)

    def scale(self, module: str) -> float:
        """What B @ A is multiplied by."""
        alpha, rank = self.alpha_pattern.get(_pattern(self.alpha_pattern, module), self.alpha), self.rank(module)
        return alpha / (rank**0.5 if self.rslora else rank)

    def targets(self, module: str) -> bool:
        """Whether the config has this module adapted."""
        if self.exclude_modules and _matches(self.exclude_modules, module):
            return False
        return _matches(self.target_modules, module) and self._transforms(module)

    def _transforms(self, module: str) -> bool:
        if self.layers is None:
            return True
        lists = self.layers_pattern or [r"[^.]*"]
        found = next((match for name in lists if (match := re.match(rf"(?:.*\.)?{name}\.(\d+)\.", module))), None)
        return found is not None and int(found[1]) in self.layers

    def check_modules(self, adapted: Iterable[str], known: Iterable[str]) -> None:
        """Raises ValueError unless what is adapted is what the config says. known: all modules of the model that can be."""
        adapted = list(adapted)
        if beyond := [module for module in adapted if not self.targets(module)]:
            raise ValueError(
                f"{self.path} has target_modules={self.target_modules!r}, but there are tensors for {beyond[0]}"
                f"{f' and {len(beyond) - 1} more' if len(beyond) > 1 else ''}: it is not the config of this adapter"
            )
        if isinstance(self.target_modules, str):  # whose patterns may be of names that this model has not
            return
        missing = [
            module
            for module in known
            if self.targets(module) and not any(is_target(module, (own,)) or is_target(own, (module,)) for own in adapted)
        ]
        if missing:
            raise ValueError(
                f"{self.path} has target_modules={self.target_modules!r}, but there are no tensors for {missing[0]}"
                f"{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}: the adapter is not whole; save it again"
            )


def _is_names(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(name, str) for name in value))


def _matches(targets: str | list[str], module: str) -> bool:
    if targets == ALL_LINEAR:
        return True
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return is_target(module, targets)


def _pattern(patterns: Iterable[str], module: str) -> str:
    return next((pattern for pattern in patterns if re.match(rf"(.*\.)?({pattern})$", module)), module)
