"""From a model's name to a folder with its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

EMBEDDED = ("tiny", "tiny-draft", "tiny-medusa", "tiny-eagle3", "tiny-mtp")
"""Models that ship inside the package; the last three are drafting heads of ``tiny``."""
_PATTERNS = ["*.safetensors", "*.json", "tokenizer*", "*.model", "*.jinja", "*.txt"]
METADATA_PATTERNS = _PATTERNS[1:]
HEAD_PATTERNS = ["*.safetensors", "*.bin", "*.pt", "*.json"]
_IGNORED_PATTERNS = ["consolidated*", "original/*", "onnx/*"]


def resolve_model(name: str, revision: str | None = None, weights: bool = True) -> Path:
    """The folder of a model: a local folder, an embedded model, or a Hugging Face id (downloaded, or from the cache).

    weights=False fetches configuration and tokenizer only. Raises ValueError saying what was tried.
    """
    return _resolve(name, revision, _PATTERNS if weights else METADATA_PATTERNS)


def resolve_head(name: str, revision: str | None = None) -> Path:
    """The folder of a drafting head, as ``resolve_model``; its weights may lie in files of torch.save too."""
    return _resolve(name, revision, HEAD_PATTERNS)


def _resolve(name: str, revision: str | None, patterns: list[str]) -> Path:
    if name in EMBEDDED:
        folder = Path(__file__).resolve().parent.parent / "assets" / name
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"the embedded model {name!r} is missing from this installation ({folder} has no config.json): "
                "reinstall the package, or train it with experiments/train_tiny.py"
            )
        return folder
    local = Path(name).expanduser()
    if (local / "config.json").is_file():
        return local
    if local.is_dir():
        raise ValueError(f"model {name!r}: the folder {local.resolve()} has no config.json, so it is no Hugging Face checkpoint")
    return _download(name, revision, patterns)


def read_json(folder: Path | None, file: str) -> dict[str, Any]:
    """A JSON file of a model folder; empty if there is none. Raises ValueError for one that holds no object."""
    path = folder / file if folder is not None else None
    if path is None or not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {str(found)[:80]!r}; expected an object")
    return found


def _download(name: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    tried = [f"embedded models ({', '.join(EMBEDDED)})", f"the local folder {Path(name).expanduser().absolute()}"]
    for cached_only, where in ((True, "the Hugging Face cache"), (False, "the Hugging Face hub")):
        try:
            folder = Path(
                snapshot_download(
                    name,
                    revision=revision,
                    allow_patterns=patterns,
                    ignore_patterns=_IGNORED_PATTERNS,
                    local_files_only=cached_only,
                )
            )
        except Exception as error:  # the hub raises many kinds: bad id, no network, no such repository, gated
            tried.append(f"{where}: {type(error).__name__}: {str(error).strip().splitlines()[0]}")
            continue
        if not cached_only or _complete(folder, patterns):
            return folder
        tried.append(f"{where}: its copy in {folder} is incomplete")
    at = f" (revision {revision})" if revision else ""
    raise ValueError(
        f"model {name!r}{at} was not found. Tried:\n  "
        + "\n  ".join(tried)
        + "\nGive a folder with config.json and *.safetensors, a Hugging Face id, or one of the embedded models; "
        "with model.load_format=dummy and model.architecture no checkpoint is needed."
    )


def _complete(folder: Path, patterns: list[str]) -> bool:
    if not (folder / "config.json").is_file():
        return False
    index = read_json(folder, "model.safetensors.index.json")
    shards = set(index.get("weight_map", {}).values())
    kinds = [pattern for pattern in patterns if pattern not in METADATA_PATTERNS]
    if not kinds:
        return True
    return all((folder / s).is_file() for s in shards) if shards else any(any(folder.glob(kind)) for kind in kinds)
