"""The classification heads of the families: one table entry each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...sampling_params import is_integer
from .settings import HeadLayer, PoolingType

Config = Mapping[str, Any]
Layers = tuple[HeadLayer, ...]


def num_labels(config: Config) -> int:
    """Classes that a config.json names; transformers' default is 2. Raises ValueError for what is no number of classes."""
    labels = config.get("num_labels")
    if labels is None:
        return len(config.get("id2label") or (0, 1))
    if not is_integer(labels) or labels < 1:
        raise ValueError(f"config.json: num_labels={labels!r} must be a positive integer")
    return int(labels)


def classifier_layers(config: Config, hidden: int, per_token: bool) -> Layers:
    """Of a ``*ForSequenceClassification``, or of a ``*ForTokenClassification`` (per_token)."""
    layers = _SEQUENCE.get(config["model_type"], _score)(config, hidden)
    if not per_token or config["model_type"] == "modernbert":
        return layers
    *_, last = layers
    return (HeadLayer("score" if last.module == "score" else "classifier", last.rows, hidden, True),)


def _score(config: Config, hidden: int) -> Layers:
    return (HeadLayer("score", num_labels(config), hidden, False),)


def _bert(config: Config, hidden: int) -> Layers:
    pooler = HeadLayer("bert.pooler.dense", hidden, hidden, True, "tanh")
    return pooler, HeadLayer("classifier", num_labels(config), hidden, True)


def _roberta(config: Config, hidden: int) -> Layers:
    dense = HeadLayer("classifier.dense", hidden, hidden, True, "tanh")
    return dense, HeadLayer("classifier.out_proj", num_labels(config), hidden, True)


def _modernbert(config: Config, hidden: int) -> Layers:
    bias, activation = bool(config.get("classifier_bias", False)), config.get("classifier_activation", "gelu")
    norm = {"norm": "head.norm", "norm_eps": config.get("norm_eps", 1e-5), "norm_bias": bool(config.get("norm_bias", False))}
    dense = HeadLayer("head.dense", hidden, hidden, bias, activation, **norm)
    return dense, HeadLayer("classifier", num_labels(config), hidden, True)


def _distilbert(config: Config, hidden: int) -> Layers:
    dense = HeadLayer("pre_classifier", hidden, hidden, True, "relu")
    return dense, HeadLayer("classifier", num_labels(config), hidden, True)


def _reward(config: Config, hidden: int, classes: int) -> Layers:
    return HeadLayer("score.0", hidden, hidden, True, "relu"), HeadLayer("score.2", classes, hidden, True)


_SEQUENCE: Mapping[str, Callable[[Config, int], Layers]] = {
    "bert": _bert,
    "roberta": _roberta,
    "xlm-roberta": _roberta,
    "modernbert": _modernbert,
    "distilbert": _distilbert,
}
"""model_type -> its head; the others' is one linear layer without a bias, ``score``."""

HEADS = (r"^lm_head\.", r"^score\.", r"^classifier\.", r"^(\w+\.)?pooler\.", r"^head\.", r"^pre_classifier\.")
"""Regular expressions of the tensors of heads."""

REWARDS: Mapping[str, Callable[[Config, int], tuple[PoolingType, Layers]]] = {
    "Qwen2ForRewardModel": lambda config, hidden: ("ALL", _reward(config, hidden, 1)),
    "Qwen2ForProcessRewardModel": lambda config, hidden: ("STEP", _reward(config, hidden, 2)),
}
"""Architectures that judge tokens, or steps that a token ends."""
