"""From a model's name to a folder with its files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

EMBEDDED = ("tiny", "tiny-draft", "tiny-medusa", "tiny-eagle3", "tiny-mtp")
"""Models that ship inside the package; the last three are drafting heads of ``tiny``."""
_PATTERNS = ["*.safetensors", "*.json", "tokenizer*", "*.model", "*.jinja", "*.txt"]
METADATA_PATTERNS = _PATTERNS[1:]
_TORCH_PATTERNS = ["pytorch_model*.bin"]
"""Taken only where there are no safetensors."""
PIPELINE_FILE = "model_index.json"
"""What a folder of the diffusers library has in the place of a config.json."""
HEAD_PATTERNS = ["*.safetensors", "*.bin", "*.pt", "*.json"]
_IGNORED_PATTERNS = ["consolidated*", "original/*", "onnx/*"]


def resolve_model(name: str, revision: str | None = None, weights: bool = True) -> Path:
    """The folder of a model: a local folder, an embedded model, or a Hugging Face id (downloaded, or from the cache); with
    ``VLLM_USE_MODELSCOPE=True`` in the environment, an id of ModelScope.

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
    if (local / PIPELINE_FILE).is_file():
        raise ValueError(
            f"model {name!r} is a pipeline that makes images ({PIPELINE_FILE}), which framework.ImagePipeline runs (pip install "
            "'kernelswap[diffusers]'); here a model that reads or writes text is expected"
        )
    if local.is_dir():
        raise ValueError(f"model {name!r}: the folder {local.resolve()} has no config.json, so it is no Hugging Face checkpoint")
    return _download(name, revision, patterns)


def pipeline_folder(name: str) -> Path | None:
    """The local folder of a pipeline of the diffusers library; None if there is no such folder. Raises ValueError for one that
    holds no pipeline."""
    local = Path(name).expanduser()
    if (local / PIPELINE_FILE).is_file():
        return local
    if name in EMBEDDED or local.is_dir():
        raise ValueError(
            f"model {name!r} cannot make images: it has no {PIPELINE_FILE}, so it is no pipeline of the library diffusers; "
            "framework.LLM serves models of text"
        )
    return None


def read_json(folder: Path | None, file: str) -> dict[str, Any]:
    """A JSON file of a model folder; empty if there is none. Raises ValueError for one that holds no object."""
    path = folder / file if folder is not None else None
    if path is None or not path.is_file():
        return {}
    found = parse_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {str(found)[:80]!r}; expected an object")
    return found


def parse_json(path: Path) -> Any:
    """What a JSON file holds. Raises ValueError for one that is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from None


def check_inside(folder: Path, file: str, source: str) -> None:
    """Raises ValueError for what a model's file ``source`` names, if it lies outside the folder or cannot be a path."""
    if Path(file).is_absolute() or ".." in Path(file).parts:
        raise ValueError(f"{folder / source} names {file!r}, which lies outside the folder: such files are not read")
    try:
        (folder / file).lstat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / source} names {file[:80]!r}, which cannot be looked up: {error}"[:1000]) from None


def _download(name: str, revision: str | None, patterns: list[str]) -> Path:
    library, snapshot_download = _library()
    tried = [f"embedded models ({', '.join(EMBEDDED)})", f"the local folder {Path(name).expanduser().absolute()}"]

    def fetch(wanted: list[str], cached_only: bool) -> Path:
        options: dict[str, Any] = {"allow_patterns": wanted, "ignore_patterns": _IGNORED_PATTERNS}
        return Path(snapshot_download(name, revision=revision, local_files_only=cached_only, **options))

    for cached_only, where in ((True, f"the {library} cache"), (False, f"the {library} hub")):
        try:
            folder = fetch(patterns, cached_only)
            if not cached_only and patterns == _PATTERNS and not any(folder.glob("*.safetensors")):
                folder = fetch([*METADATA_PATTERNS, *_TORCH_PATTERNS], cached_only)
        except Exception as error:  # the hub raises many kinds: bad id, no network, no such repository, gated
            lines = str(error).strip().splitlines() or [""]
            tried.append(f"{where}: {type(error).__name__}: {lines[0]}")
            continue
        if not cached_only or _complete(folder, patterns):
            return folder
        tried.append(f"{where}: its copy in {folder} is incomplete")
    at = f" (revision {revision})" if revision else ""
    raise ValueError(
        f"model {name!r}{at} was not found. Tried:\n  "
        + "\n  ".join(tried)
        + f"\nGive a folder with config.json and *.safetensors, a {library} id, or one of the embedded models; "
        "with model.load_format=dummy and model.architecture no checkpoint is needed."
    )


def _library() -> tuple[str, Callable[..., str]]:
    """Name of the hub, and what downloads from it."""
    if os.environ.get("VLLM_USE_MODELSCOPE", "").lower() not in ("true", "1"):
        import huggingface_hub

        return "Hugging Face", huggingface_hub.snapshot_download
    try:
        from modelscope.hub.snapshot_download import snapshot_download
    except ImportError as error:
        raise ValueError(
            f"VLLM_USE_MODELSCOPE is set, but the modelscope library cannot be imported ({error}): pip install "
            "'kernelswap[modelscope]', or unset it"
        ) from error
    return "ModelScope", snapshot_download


def _complete(folder: Path, patterns: list[str]) -> bool:
    if not (folder / "config.json").is_file():
        return False
    kinds = [pattern for pattern in patterns if pattern not in METADATA_PATTERNS]
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if shards := set(read_json(folder, index).get("weight_map", {}).values()):
            if all((folder / shard).is_file() for shard in shards):
                return True
            kinds = []
    if patterns == _PATTERNS and kinds:
        kinds += _TORCH_PATTERNS
    return patterns == METADATA_PATTERNS or any(any(folder.glob(kind)) for kind in kinds)
