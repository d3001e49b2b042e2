"""From a model's config.json, and what lies beside it, to how it pools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...config import ModelConfig
from ...pooling_params import PoolingParams, PoolingTask
from .classifiers import REWARDS, classifier_layers, num_labels
from .sentence_transformers import is_count, pooling_modules, with_modules
from .settings import POOLING_TYPES, Pooling, PoolingType, ScoreActivation, Towers

_KINDS: tuple[tuple[str, PoolingTask | None], ...] = (
    ("ForCausalLM", None),
    ("ForConditionalGeneration", None),
    ("LMHeadModel", None),
    ("ForTextEncoding", "embed"),
    ("EmbeddingModel", "embed"),
    ("ForSequenceClassification", "classify"),
    ("ForTokenClassification", "token_classify"),
    ("ClassificationModel", "classify"),
    ("RewardModel", "token_classify"),
    ("Model", "embed"),
    ("GritLM", "embed"),
)
"""How the name of an architecture ends -> what it is for; None = it generates. The first that fits counts."""
_OVERRIDES = ("pooling_type", "use_activation", "step_tag_id", "returned_token_ids")
_STEP_TAG = 151651
"""The token that ends a step for Qwen's process reward models, whose config.json does not say so."""
_PROBLEMS: Mapping[str, ScoreActivation] = {"regression": "identity", "multi_label_classification": "sigmoid"}
"""problem_type -> activation, where the number of classes does not say it."""
TOWERS = ("clip", "siglip")
"""Model types with a tower for texts and one for images, which the library computes."""
REFUSED_TOWERS = {
    "siglip2": "its images keep their shapes, and those of this version have one size: take a checkpoint of type clip or siglip "
    "(those of SigLIP 2 with a fixed resolution are siglip)"
}
"""Likewise, but refused: why."""


def read_pooling(
    config: ModelConfig, found: Mapping[str, Any], folder: Path | None, hidden_size: int, causal: bool
) -> Pooling | None:
    """found: config.json; hidden_size, causal: of the model without its heads. None for a model that generates.

    Raises ValueError for what cannot be served."""
    if why := REFUSED_TOWERS.get(found["model_type"]):
        raise ValueError(f"model {config.name!r} of model_type {found['model_type']!r} cannot run: {why}")
    if found["model_type"] in TOWERS:
        return _towers(config, found)
    modules = [] if folder is None else pooling_modules(folder)
    names = found.get("architectures") or [""]
    task = _task(config, str(names[0]), bool(modules), causal, "classifier_from_token" in found)
    if task is None:
        return None
    kind: PoolingType = "LAST" if causal else "CLS"
    labels = _labels(found)
    pooling = Pooling(task, kind, causal, activation=_score_activation(found), labels=labels, matryoshka=_matryoshka(found))
    if names[0] == "GritLM":
        if causal:
            raise ValueError(
                f"architectures=['GritLM'] of model_type {found.get('model_type')!r} cannot embed in this version, which looks "
                "both ways in native models of type 'mistral' only; set model.runner=generate to let it generate"
            )
        pooling = replace(pooling, kind="MEAN", instructed=True)
    if task in ("classify", "token_classify"):
        pooling = _with_classifier(pooling, found, str(names[0]), folder, hidden_size)
    if modules:
        assert folder is not None
        pooling = with_modules(pooling, modules, folder, hidden_size)
    return _complete(pooling, config, hidden_size)


def _complete(pooling: Pooling, config: ModelConfig, hidden_size: int) -> Pooling:
    """With what the configuration asks for."""
    pooling = _by_tokens(_with_overrides(pooling, config.pooler))
    size = pooling.embedding_size(hidden_size)
    if max(pooling.matryoshka or (0,)) > size:
        raise ValueError(f"config.json: matryoshka_dimensions={list(pooling.matryoshka or ())}, but embeddings have {size}")
    return pooling


def _towers(config: ModelConfig, found: Mapping[str, Any]) -> Pooling:
    """found: as ``towers_config`` completes it. Raises ValueError for what it cannot do."""
    model_type, names = found["model_type"], found.get("architectures") or [""]
    if config.runner == "generate" or config.convert == "classify" or names[0].endswith("Classification"):
        raise ValueError(
            f"model {config.name!r} cannot generate or classify: of model_type {model_type!r} there are the embeddings of texts "
            "and of images; leave out model.runner and model.convert"
        )
    if others := config.pooler.keys() - {"use_activation"}:
        raise ValueError(f"model.pooler.{min(others)} cannot work: towers of {model_type!r} pool by themselves")
    if model_type == "clip" and type(found["eos_token_id"]) is not int:
        raise ValueError(
            f"model {config.name!r} cannot embed texts: CLIP takes them where they end, and its eos_token_id is "
            f"{found['eos_token_id']!r}; a token id is expected in text_config"
        )
    padding = (found["max_position_embeddings"], found["pad_token_id"]) if model_type == "siglip" else None
    towers = Towers(found["projection_dim"], found["vocab_size"], found["image_size"], padding)
    return _complete(Pooling("embed", "CLS", False, matryoshka=_matryoshka(found), towers=towers), config, 0)


def towers_config(config: ModelConfig, found: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """config.json of a model with towers, and what the library says of the texts, of the images' size and of the embeddings of
    both, as of a model without towers."""
    from ..library import library_config  # slow to import, and needed for few models

    theirs = library_config(config, folder, found["model_type"])
    if theirs.model_type != found["model_type"]:
        raise ValueError(
            f"model {config.name!r} cannot be of model_type {found['model_type']!r} (model.architecture): its config.json is of "
            f"another type, {theirs.model_type!r}"
        )
    text = theirs.text_config
    size = theirs.projection_dim if found["model_type"] == "clip" else text.projection_size
    names = ("max_position_embeddings", "vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")
    common = {name: getattr(text, name) for name in names}
    return {**found, **common, "projection_dim": size, "image_size": theirs.vision_config.image_size}


def _labels(found: Mapping[str, Any]) -> dict[int, str]:
    given = found.get("id2label") or {}
    try:
        return {int(number): str(label) for number, label in given.items()}
    except (AttributeError, ValueError):
        raise ValueError(f"config.json: id2label={given!r:.200} must be names of classes by their numbers") from None


def _by_tokens(pooling: Pooling) -> Pooling:
    """Where every token counts, there is no task but those of tokens."""
    if pooling.kind not in ("ALL", "STEP") or pooling.task not in ("embed", "classify"):
        return pooling
    return replace(pooling, task="token_embed" if pooling.task == "embed" else "token_classify")


def _task(config: ModelConfig, name: str, has_modules: bool, causal: bool, has_answers: bool) -> PoolingTask | None:
    by_name = next((task for suffix, task in _KINDS if name.endswith(suffix)), None)
    converts = config.convert in ("embed", "classify")
    pools = by_name is not None or has_modules or has_answers or converts or not causal
    if config.runner == "generate" or (config.runner == "auto" and not pools):
        if not causal:
            raise ValueError(
                f"model.runner=generate cannot work: in {config.name!r} tokens see those after them, so that it can only pool; "
                "leave it out, or set pooling"
            )
        if converts:
            raise ValueError(
                f"model.convert={config.convert} cannot work for {config.name!r}, which generates: set model.runner=pooling with it"
            )
        return None
    if converts:
        return "embed" if config.convert == "embed" else "classify"
    if config.convert == "none" and by_name is None:
        raise ValueError(
            f"model.convert=none cannot work: {config.name!r} ({name or 'which names no architecture'}) pools only if it is "
            "converted: set embed, classify, or auto"
        )
    return by_name or ("classify" if has_answers else "embed")


def _with_classifier(pooling: Pooling, found: Mapping[str, Any], name: str, folder: Path | None, hidden_size: int) -> Pooling:
    if tokens := found.get("classifier_from_token"):
        kinds = set(map(type, tokens)) if isinstance(tokens, list | tuple) else set()
        if kinds not in ({int}, {str}):
            raise ValueError(f"config.json: classifier_from_token={tokens!r} must be a list of tokens or of their ids")
        method = found.get("method", "from_2_way_softmax" if found.get("is_original_qwen3_reranker") else "no_post_processing")
        two_way = method == "from_2_way_softmax"
        if method not in ("from_2_way_softmax", "no_post_processing") or (two_way and len(tokens) != 2):
            raise ValueError(
                f"config.json: classifier_from_token={tokens!r} with method={method!r} cannot work: method is from_2_way_softmax, "
                "of two tokens, or no_post_processing"
            )
        ids = _token_ids(tokens, folder)
        activation = _by_classes(pooling, found, 1 if two_way else len(ids))
        return replace(pooling, answer_tokens=ids, two_way=two_way, activation=activation)
    if name in REWARDS:
        kind, layers = REWARDS[name](found, hidden_size)
        pooling = replace(pooling, task="token_classify", kind=kind, classifier=layers, activation="identity")
        if kind == "STEP":
            pooling = replace(pooling, step_tag_id=found.get("step_tag_id", _STEP_TAG), activation="softmax")
        return pooling
    layers = classifier_layers(found, hidden_size, per_token=pooling.task == "token_classify")
    kind = pooling.kind
    if pooling.task == "token_classify":
        kind = "ALL"
    elif found.get("classifier_pooling") == "mean":
        kind = "MEAN"
    return replace(pooling, kind=kind, classifier=layers, activation=_by_classes(pooling, found, num_labels(found)))


def _by_classes(pooling: Pooling, found: Mapping[str, Any], classes: int) -> ScoreActivation:
    """What the files say, else what is usual for so many classes."""
    if _named_activation(found) or str(found.get("problem_type")) in _PROBLEMS:
        return pooling.activation
    return "sigmoid" if classes == 1 else "softmax"


def _score_activation(found: Mapping[str, Any]) -> ScoreActivation:
    if name := _named_activation(found):
        known: dict[str, ScoreActivation] = {"identity": "identity", "sigmoid": "sigmoid", "softmax": "softmax"}
        last = name.rpartition(".")[2].lower()
        if last not in known:
            raise ValueError(f"config.json: the activation {name!r} of its scores is none of {', '.join(known)}")
        return known[last]
    return _PROBLEMS.get(str(found.get("problem_type")), "softmax")


def _named_activation(found: Mapping[str, Any]) -> str | None:
    """As sentence-transformers writes it into the config.json of a cross-encoder."""
    own = found.get("sentence_transformers")
    name = own.get("activation_fn") if isinstance(own, dict) else None
    name = name or found.get("sbert_ce_default_activation_function")
    return str(name) if name else None


def _token_ids(tokens: Sequence[Any], folder: Path | None) -> tuple[int, ...]:
    if type(tokens[0]) is int:
        return tuple(tokens)
    if folder is None:
        raise ValueError(
            f"config.json: classifier_from_token={tokens!r} needs a tokenizer, and this model has no files: give token ids"
        )
    from ...engine.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    ids = tokenizer.convert_tokens_to_ids(list(tokens))
    for token, number in zip(tokens, ids):
        if number is None or number == tokenizer.unk_token_id:
            raise ValueError(f"config.json: classifier_from_token holds {token!r}, which the tokenizer does not have as one token")
    return tuple(ids)


def _matryoshka(found: Mapping[str, Any]) -> tuple[int, ...] | None:
    sizes = found.get("matryoshka_dimensions")
    if sizes:
        if not isinstance(sizes, list | tuple) or not all(is_count(size) for size in sizes):
            raise ValueError(f"config.json: matryoshka_dimensions={sizes!r} must be a list of positive integers")
        return tuple(sizes)
    return () if found.get("is_matryoshka") else None


def _with_overrides(pooling: Pooling, given: Mapping[str, Any]) -> Pooling:
    """``ModelConfig.pooler`` over what the files say."""
    for key in given.keys() - set(_OVERRIDES):
        raise ValueError(f"model.pooler.{key} does not exist in this version; it has {', '.join(_OVERRIDES)}")
    if (kind := given.get("pooling_type")) is not None:
        if kind not in POOLING_TYPES:
            raise ValueError(f"model.pooler.pooling_type={kind!r} cannot work: it must be one of {', '.join(POOLING_TYPES)}")
        pooling = replace(pooling, kind=kind)
    try:
        asked = PoolingParams(**{key: value for key, value in given.items() if key != "pooling_type"})
    except ValueError as error:
        raise ValueError(str(error).replace("PoolingParams: ", "model.pooler.", 1)) from None
    if asked.use_activation is not None:
        pooling = replace(pooling, use_activation=asked.use_activation)
    if asked.step_tag_id is not None:
        pooling = replace(pooling, step_tag_id=asked.step_tag_id)
    if asked.returned_token_ids is not None:
        pooling = replace(pooling, returned_token_ids=tuple(asked.returned_token_ids))
    if max(ids := pooling.returned_token_ids or (-1,)) >= pooling.num_labels:
        raise ValueError(f"model.pooler.returned_token_ids={list(ids)} cannot work: the model has {pooling.num_labels} classes")
    if pooling.kind == "STEP" and pooling.step_tag_id is None:
        raise ValueError("pooling_type=STEP needs the token that ends a step: give model.pooler.step_tag_id")
    return pooling
