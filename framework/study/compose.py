"""The config edge: from Hydra's composed config to dataclasses. Nothing else of the framework knows Hydra or OmegaConf."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..config import EngineConfig
from .metrics import SLOConfig
from .workload import WorkloadConfig

CONFIG_FILE = "config.json"
"""The config of a run, in the run's folder."""
SYSTEMS = ("kernelswap", "transformers", "transformers_static")
"""What can serve a workload: our engine, or the transformers library by its continuous batching or by its ``generate``."""


@dataclass
class ServeConfig(EngineConfig):
    """One serving run: an engine, what is asked of it, and by which objectives it is judged.

    name                 of the study; its runs are written below outputs/<name>
    system               what serves: kernelswap, transformers (its continuous batching), transformers_static (its generate)
    num_warmup_requests  served before the measured ones, so that one-time costs are not counted
    """

    name: str = "serve"
    system: str = "kernelswap"
    workload: WorkloadConfig = field(default_factory=WorkloadConfig)
    slo: SLOConfig = field(default_factory=SLOConfig)
    num_warmup_requests: int = 2

    def validate(self) -> None:
        super().validate()
        if self.system not in SYSTEMS:
            raise ValueError(f"system={self.system!r} cannot work: it must be one of {', '.join(SYSTEMS)}")

    def engine(self) -> EngineConfig:
        """The part that the engine is built from."""
        return EngineConfig(**{f.name: getattr(self, f.name) for f in fields(EngineConfig)})


def register_schema() -> None:
    """Makes ServeConfig the schema behind conf/serve.yaml: unknown keys and wrong types then fail at composition.

    ``kernels`` alone takes any key, also in a study with a config of its own that begins with ``kernels_schema``: the registry has
    the names of the ops, and an engine refuses at its start what is not in there."""
    schemas = {"serve_schema": OmegaConf.structured(ServeConfig), "kernels_schema": OmegaConf.create({"kernels": {}})}
    for name, schema in schemas.items():
        OmegaConf.set_struct(schema.kernels, False)
        ConfigStore.instance().store(name=name, node=schema)


def hydra_version_base() -> dict[str, str]:
    """Arguments for ``hydra.main`` and ``hydra.initialize``: 1.3 asks for a version_base, 1.4 for none."""
    return {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}


def to_serve_config(config: DictConfig) -> ServeConfig:
    """The dataclass that Hydra composed. Raises ValueError for keys that only ``+`` could add: nothing would read them."""
    composed = OmegaConf.to_object(config)
    assert isinstance(composed, ServeConfig), "conf/serve.yaml must begin with serve_schema"
    if unknown := _unknown_keys(composed):
        raise ValueError(f"there is no key {', '.join(unknown)}; a key that exists needs no + (kernels.<op>=... of any op neither)")
    return composed


def _unknown_keys(config: Any, prefix: str = "") -> list[str]:
    """What OmegaConf sets on a dataclass beside its fields."""
    unknown = []
    for name, value in vars(config).items():
        if name not in config.__dataclass_fields__:
            unknown.append(prefix + name)
        elif is_dataclass(value):
            unknown += _unknown_keys(value, f"{prefix}{name}.")
    return unknown


def compose(overrides: Sequence[str], folder: Path) -> ServeConfig:
    """The config of ``serve.yaml`` in ``folder`` with Hydra overrides (``model=tiny cache.block_size=64``), outside of a Hydra
    app. Raises ValueError for overrides that do not fit."""
    if not (folder / "serve.yaml").is_file():
        raise ValueError(f"{folder} holds no serve.yaml: run this from a checkout, where conf/ lies beside the packages")
    register_schema()
    try:
        with hydra.initialize_config_dir(str(folder), **hydra_version_base()):
            return to_serve_config(hydra.compose("serve", list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(str(error)) from error


def save_config(config: ServeConfig, path: Path) -> None:
    """Writes a config that ``load_config`` reads back."""
    path.write_text(json.dumps(asdict(config), indent=1) + "\n", encoding="utf-8")


def load_config(path: Path) -> ServeConfig:
    """Reads a config back, checked against the schema. Raises ValueError naming the key that does not fit."""
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    try:
        return to_serve_config(OmegaConf.merge(OmegaConf.structured(ServeConfig), values))  # type: ignore[arg-type]
    except OmegaConfBaseException as error:
        raise ValueError(f"{path.name} does not fit the configuration: {error}") from error
