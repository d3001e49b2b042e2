"""What sentence-transformers writes beside a model: modules.json, the folders that it names, and two files of settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...sampling_params import is_integer
from ..hub import check_inside, parse_json, read_json
from .settings import HeadLayer, Pooling, PoolingType

Module = Mapping[str, Any]

_ORDER = {"Transformer": 0, "Pooling": 1, "Dense": 2, "LayerNorm": 2, "Normalize": 3}
"""Kinds of modules, by where they stand; Dropout, which does nothing here, may stand anywhere."""
_MODES: Mapping[str, PoolingType] = {"cls": "CLS", "mean": "MEAN", "lasttoken": "LAST"}
_OLD_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
_ACTIVATIONS = ("identity", "tanh", "relu", "gelu", "silu", "sigmoid")


def pooling_modules(folder: Path) -> list[Module]:
    """Of modules.json; empty where there is no pooling in it. Raises ValueError for a file that holds something else."""
    path = folder / "modules.json"
    if not path.is_file():
        return []
    found = parse_json(path)
    if not isinstance(found, list) or not all(isinstance(module, dict) for module in found):
        raise ValueError(f"{path} holds {str(found)[:80]!r}; expected a list of objects")
    return found if any(_kind(module) == "Pooling" for module in found) else []


def with_modules(pooling: Pooling, modules: list[Module], folder: Path, hidden_size: int) -> Pooling:
    """The model, pooling, dense layers and norms, normalization. Raises ValueError for what cannot be served."""
    kinds = [kind for kind in map(_kind, modules) if kind != "Dropout"]
    _check_order(kinds, folder)
    projection: list[HeadLayer] = []
    for module in modules:
        kind, path = _kind(module), module.get("path", "")
        if not isinstance(path, str):
            raise ValueError(f"{folder / 'modules.json'}: path={path!r} must be text")
        check_inside(folder, path, "modules.json")
        found = read_json(folder / path, "config.json") if path else {}
        if kind == "Pooling":
            pooling = replace(pooling, kind=_pooling_type(found, folder / path))
        elif kind == "Dense":
            projection.append(_dense(found, path, folder))
        elif kind == "LayerNorm":
            projection.append(_layer_norm(found, path, folder))
    for layer, columns in zip(projection, [hidden_size, *(layer.rows for layer in projection)]):
        if layer.columns != columns:
            raise ValueError(f"{folder / layer.folder}: takes {layer.columns} numbers, but what comes before gives {columns}")
    own, text = read_json(folder, "config_sentence_transformers.json"), read_json(folder, "sentence_bert_config.json")
    prompts, default = _prompts(own, folder / "config_sentence_transformers.json")
    source, longest = folder / "sentence_bert_config.json", text.get("max_seq_length")
    if longest is not None and not is_count(longest):
        raise ValueError(f"{source}: max_seq_length={longest!r} must be a positive integer")
    return replace(
        pooling,
        use_activation="Normalize" in kinds or bool(pooling.num_labels),
        projection=tuple(projection),
        prompts=prompts,
        default_prompt=default,
        max_len=longest,
        lower_case=_flag(text, "do_lower_case", False, source),
    )


def is_count(value: Any) -> bool:
    """Whether it is a positive integer."""
    return is_integer(value) and value > 0


def _kind(module: Module) -> str:
    return str(module.get("type", "")).rpartition(".")[2]


def _check_order(kinds: list[str], folder: Path) -> None:
    for kind in kinds:
        if kind not in _ORDER:
            raise ValueError(f"{folder / 'modules.json'}: modules of type {kind} are not available in this version")
    places = [_ORDER[kind] for kind in kinds]
    if places != sorted(places) or places.count(0) > 1 or places.count(1) > 1:
        raise ValueError(
            f"{folder / 'modules.json'}: the modules {', '.join(kinds)} are not available in this order, or as often, in this "
            "version: one Transformer, one Pooling, then layers, then a normalization"
        )


def _pooling_type(found: Mapping[str, Any], folder: Path) -> PoolingType:
    mode = found.get("pooling_mode") or [mode for key, mode in _OLD_MODES.items() if found.get(key)]
    modes = [str(each) for each in mode] if isinstance(mode, list) else [str(mode)]
    if len(modes) != 1 or modes[0] not in _MODES:
        raise ValueError(
            f"{folder / 'config.json'}: pooling by {' and '.join(modes) or 'nothing'} is not available in this version, which has "
            f"{', '.join(_MODES)}, one at a time"
        )
    if found.get("include_prompt") is False:
        raise ValueError(f"{folder / 'config.json'}: include_prompt=false is not available in this version")
    return _MODES[modes[0]]


def _dense(found: Mapping[str, Any], path: str, folder: Path) -> HeadLayer:
    named = str(found.get("activation_function", "torch.nn.modules.activation.Tanh"))
    activation = named.rpartition(".")[2].lower()
    source = found.get("module_input_name", "sentence_embedding")
    if activation not in _ACTIVATIONS or found.get("use_residual") or source != "sentence_embedding":
        raise ValueError(
            f"{folder / path / 'config.json'}: a dense layer with activation_function={named!r}, use_residual or an input other "
            "than sentence_embedding is not available in this version"
        )
    rows, columns = (_size(found, key, folder / path) for key in ("out_features", "in_features"))
    return HeadLayer("linear", rows, columns, _flag(found, "bias", True, folder / path / "config.json"), activation, path)


def _layer_norm(found: Mapping[str, Any], path: str, folder: Path) -> HeadLayer:
    size = _size(found, "dimension", folder / path)
    return HeadLayer("", size, size, False, folder=path, norm="norm")


def _prompts(found: Mapping[str, Any], path: Path) -> tuple[dict[str, str], str | None]:
    """Name -> prompt, and the name of that which is taken where none is given."""
    prompts, default = found.get("prompts") or {}, found.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str) for prompt in prompts.values()):
        raise ValueError(f"{path}: prompts={prompts!r} must be texts by their names")
    if default is not None and default not in list(prompts):
        raise ValueError(f"{path}: default_prompt_name={default!r} is none of the prompts, {', '.join(prompts) or '(none)'}")
    return prompts, default


def _flag(found: Mapping[str, Any], key: str, default: bool, path: Path) -> bool:
    flag: Any = found.get(key, default)
    if not isinstance(flag, bool):
        raise ValueError(f"{path}: {key}={flag!r} must be true or false")
    return flag


def _size(found: Mapping[str, Any], key: str, folder: Path) -> int:
    size: Any = found.get(key)
    if not is_count(size):
        raise ValueError(f"{folder / 'config.json'}: {key}={size!r} must be a positive integer")
    return int(size)
