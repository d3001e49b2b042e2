"""The config edge: from Hydra's composed config to dataclasses. Nothing else of the framework knows Hydra or OmegaConf."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ..config import EngineConfig, QuantConfig
from ..executor.kinds import EXECUTORS
from .load.config import HttpConfig
from .metrics import SLOConfig
from .plot_kinds import FigureSpec
from .sweep import AUTO, split_condition
from .workload import WorkloadConfig

Config = TypeVar("Config", bound="StudyConfig")

CONFIG_FILE = "config.json"
"""The config of a run, in the run's folder."""
SWEEP_FILE, RUN_CONFIG = "multirun.yaml", ".hydra/hydra.yaml"
"""What Hydra writes beside the runs of a sweep, and into the folder of a run."""
SYSTEMS = ("kernelswap", "transformers", "transformers_static")
"""What can serve a workload: our engine, or the transformers library by its continuous batching or by its ``generate``."""


SWEEP_KEYS = ("repeats", "max_repeats", "primary_metric", "precision", "resume")
"""Keys of a sweep: they say how often its runs are repeated and how they are judged, and are part of no run."""
SWEEPER_TARGET = "hydra_plugins.study_sweeper.StudySweeper"
"""Hydra takes sweepers only of that package, which it finds beside the scripts, in experiments/."""


@dataclass
class StudyConfig(EngineConfig):
    """One run of a study: an engine, the study's name, and what its report (``kernelswap report``) says and shows.

    name      its runs are written below outputs/<name>
    question  what the study is to answer, in a sentence
    metrics   those of its table, the one that decides first; none = the usual ones
    compare   COLUMN=VALUE: the other values of a swept column are compared with this one
    figures   what is drawn: kinds of ``kernelswap plot``, each with its options behind it, such as
              ``lines x=workload.rate y=goodput_per_s``, ``latency where=workload.rate=8``; none = by what was swept
    repeat    which repeat of its setting this run is; the seeds are shifted by it

    Of the sweep that the run is part of:

    repeats         runs of every setting, interleaved: a number, or auto: until the 95 % confidence interval of primary_metric is
                    narrow enough, of every ratio to the first value of the first swept key
    primary_metric  the one metric by which auto and a search judge, such as tpot_p50_s or goodput_per_s
    precision       of auto: half the interval's width; 0.01 = within 1 % up or down
    max_repeats     of auto: where it stops at the latest
    resume          auto (where the same sweep, of the same code, was interrupted, it goes on), never, or the folder of a sweep:
                    what finished there with the same config is not run again
    """

    name: str = ""
    repeat: int = 0
    repeats: int | str = 1
    primary_metric: str | None = None
    precision: float = 0.01
    max_repeats: int = 60
    resume: str = "auto"
    question: str = ""
    metrics: list[str] = field(default_factory=list)
    compare: str = ""
    figures: list[str] = field(default_factory=list)

    def validate(self) -> None:
        super().validate()
        for figure in self.figures:
            FigureSpec.parse(figure)
        if self.compare:
            split_condition(self.compare, "compare")

    def engine(self) -> EngineConfig:
        """The part that the engine is built from."""
        return EngineConfig(**{f.name: getattr(self, f.name) for f in fields(EngineConfig)})

    def shifted(self: Config) -> Config:
        """The config with the seeds of its repeat."""
        return replace(self, seed=self.seed + self.repeat)

    def validate_sweep(self) -> None:
        """Raises ValueError for keys of the sweep that cannot work."""
        auto = self.repeats == AUTO
        for works, key, expected in (
            (auto or (isinstance(self.repeats, int) and self.repeats >= 1), "repeats", "a positive number, or auto"),
            (not auto or self.primary_metric, "primary_metric", "the metric that repeats=auto judges by, such as tpot_p50_s"),
            (0 < self.precision < 1, "precision", "more than 0 and less than 1"),
            (self.max_repeats >= 2, "max_repeats", "2 or more"),
            (self.repeat >= 0, "repeat", "0 or more"),
        ):
            if not works:
                raise ValueError(f"{key}={getattr(self, key)!r} cannot work: it must be {expected}")


@dataclass
class SweeperConfig:
    """Hydra's node of our sweeper: its own fields, as of Hydra's basic one.

    params          key -> what it is swept over, of a study's YAML file
    max_batch_size  most jobs handed to the launcher at once
    """

    _target_: str = SWEEPER_TARGET
    max_batch_size: int | None = None
    params: dict[str, str] | None = None


@dataclass
class ServeConfig(StudyConfig):
    """One serving run: an engine, what is asked of it, and by which objectives it is judged.

    system               what serves: kernelswap, transformers (its continuous batching), transformers_static (its generate)
    num_warmup_requests  served before the measured ones, so that one-time costs are not counted
    """

    name: str = "serve"
    system: str = "kernelswap"
    workload: WorkloadConfig = field(default_factory=WorkloadConfig)
    slo: SLOConfig = field(default_factory=SLOConfig)
    num_warmup_requests: int = 2

    def shifted(self) -> ServeConfig:
        shifted = super().shifted()
        return replace(shifted, workload=replace(self.workload, seed=self.workload.seed + self.repeat))

    def validate(self) -> None:
        super().validate()
        if self.system not in SYSTEMS:
            raise ValueError(f"system={self.system!r} cannot work: it must be one of {', '.join(SYSTEMS)}")


@dataclass
class LoadConfig(ServeConfig):
    """A serving run whose system is a server, over HTTP: the same workload, objectives and columns.

    Of the engine's keys the client uses those of ``model``, for the vocabulary and the tokenizer; the others say what the server
    was started with, and nobody checks them.

    system  what the row calls the server
    """

    name: str = "load"
    system: str = "http"
    http: HttpConfig = field(default_factory=HttpConfig)

    def validate(self) -> None:
        StudyConfig.validate(self)  # not ServeConfig's, which knows only the systems that run here
        self.workload.validate()
        self.http.validate()


@dataclass
class BaselineConfig:
    """What the quality of a model is measured against: the floats of the same checkpoint, with a cache of floats.

    model    the checkpoint; None = the run's own. Where that is quantized, the one that it was made from
    dtype    float32: the checkpoint's numbers without further rounding, so that a 16-bit run shows what its own arithmetic costs;
             or auto (as the checkpoint stores them), float16, bfloat16
    kernels  what every op takes: torch (independent of the kernels under study), auto, reference
    """

    model: str | None = None
    dtype: str = "float32"
    kernels: str = "torch"


@dataclass
class QualityConfig(StudyConfig):
    """One measurement of quality: an engine's model, fed with a text window by window, beside its baseline.

    Of the engine, what computes logits counts: model, quant, cache, kernels. Tokens, seats and blocks are those of the windows.

    text            a UTF-8 file; None = the held-out modules of ``framework.corpus``
    window_tokens   tokens of a window, at whose first token every context begins
    num_windows     how many, spread evenly over the text; None = all
    batch_windows   windows side by side in a step
    chunk_tokens    tokens of a window in a step: up to 8 run through the decode kernels (1 as decode steps do, recordings
                    included), more through those of prefill
    """

    name: str = "quality"
    text: str | None = None
    window_tokens: int = 1024
    num_windows: int | None = None
    batch_windows: int = 1
    chunk_tokens: int = 512
    baseline: BaselineConfig = field(default_factory=BaselineConfig)

    def validate(self) -> None:
        super().validate()
        lowest = {"window_tokens": 2, "num_windows": 1, "batch_windows": 1, "chunk_tokens": 1}
        for key, least in lowest.items():
            value = getattr(self, key)
            if value is not None and value < least:
                raise ValueError(f"{key}={value} cannot work: it must be {least} or more")
        if not EXECUTORS[self.executor.kind].has_device:
            raise ValueError(f"executor.kind={self.executor.kind} computes no logits: quality needs executor.kind=local")
        if self.model.load_format == "dummy":
            raise ValueError("model.load_format=dummy has random weights, whose quality says nothing; give a checkpoint")

    def baseline_engine(self) -> EngineConfig:
        """The engine of the baseline."""
        model = replace(self.model, dtype=self.baseline.dtype)
        if self.baseline.model is not None:
            model = replace(model, name=self.baseline.model, revision=None)
        kernels, cache = {"default": self.baseline.kernels}, replace(self.cache, dtype="auto")
        return replace(self.engine(), model=model, quant=QuantConfig(), cache=cache, kernels=kernels)


@dataclass
class ImagesConfig(StudyConfig):
    """A measurement of a pipeline that makes images: what each of its steps takes.

    Of the engine, model.name, model.revision, model.dtype, kernels, plugins, tuned, device, interpret, seed and num_threads count;
    other keys are refused.

    shape       random weights of these shapes in the place of model.name: see ``experiments/made_up_pipeline.py``
    num_images  made of the prompt side by side, each of another noise
    num_warmup_steps  of an image made before the measured ones; the first compiles
    The others are as ``ImagePipeline.generate`` takes them.
    """

    name: str = "images"
    shape: dict[str, Any] = field(default_factory=dict)
    prompt: str = ""
    negative_prompt: str | None = None
    num_images: int = 1
    num_inference_steps: int = 10
    num_warmup_steps: int = 1
    guidance_scale: float = 7.5
    height: int | None = None
    width: int | None = None

    def validate(self) -> None:
        super().validate()
        for key in ("num_images", "num_warmup_steps"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)} cannot work: it must be 1 or more")


def register_schema() -> None:
    """Makes the dataclasses the schemas behind the YAML files: unknown keys and wrong types then fail at composition.

    ``kernels`` (also in a study with a config of its own that begins with ``kernels_schema``), ``executor.op_scale`` and
    ``executor.op_delay_s`` alone take any key: the registry has the names of the ops, and an engine refuses at its start what is
    not in there."""
    schemas = {
        "serve_schema": OmegaConf.structured(ServeConfig),
        "load_schema": OmegaConf.structured(LoadConfig),
        "quality_schema": OmegaConf.structured(QualityConfig),
        "images_schema": OmegaConf.structured(ImagesConfig),
        "kernels_schema": OmegaConf.create({"kernels": {}}),
    }
    for name, schema in schemas.items():
        OmegaConf.set_struct(schema.kernels, False)
        if "executor" in schema:
            OmegaConf.set_struct(schema.executor.op_scale, False)
            OmegaConf.set_struct(schema.executor.op_delay_s, False)
        ConfigStore.instance().store(name=name, node=schema)
    ConfigStore.instance().store(group="hydra/sweeper", name="study", node=SweeperConfig)


def hydra_version_base() -> dict[str, str]:
    """Arguments for ``hydra.main`` and ``hydra.initialize``: 1.3 asks for a version_base, 1.4 for none."""
    return {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}


def to_config(config: DictConfig, schema: type[Config]) -> Config:
    """The dataclass that Hydra composed. Raises ValueError for keys that only ``+`` could add: nothing would read them."""
    composed = OmegaConf.to_object(config)
    assert isinstance(composed, schema), f"the YAML file must begin with the schema of {schema.__name__}"
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
            return to_config(hydra.compose("serve", list(overrides)), ServeConfig)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(str(error)) from error


def saved_commands(folders: Iterable[Path]) -> list[str]:
    """The command lines by which the runs in ``folders`` were made, as Hydra kept them there or beside: of sweeps one each. Without
    what only says where on a machine the results lie; none where Hydra's files are missing."""
    kept = [
        next((path for path in (folder.parent / SWEEP_FILE, folder / RUN_CONFIG) if path.is_file()), None) for folder in folders
    ]
    commands = []
    for path in dict.fromkeys(filter(None, kept)):
        try:
            saved: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
            job, overrides = saved["hydra"]["job"]["name"], saved["hydra"]["overrides"]
            others = [word for word in overrides["hydra"] if not re.match(r"hydra\.(mode|run\.dir|sweep\.(dir|subdir))=", word)]
            words = ["python", f"experiments/{job}.py", *(["-m"] if path.name == SWEEP_FILE else []), *overrides["task"], *others]
        except (OSError, KeyError, TypeError, YAMLError, OmegaConfBaseException):
            continue  # not of Hydra, or not whole
        commands.append(" ".join(map(_quoted, words)))
    return list(dict.fromkeys(commands))


def _quoted(word: str) -> str:
    """For a shell; in double quotes where single ones are in the word and nothing that means something in double ones."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


def save_config(config: StudyConfig, path: Path) -> None:
    """Writes a config that ``load_config`` reads back."""
    path.write_text(json.dumps(asdict(config), indent=1) + "\n", encoding="utf-8")


def load_config(path: Path, schema: type[Config]) -> Config:
    """Reads a config back, checked against the schema. Raises ValueError naming the key that does not fit."""
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    try:
        return to_config(OmegaConf.merge(OmegaConf.structured(schema), values), schema)  # type: ignore[arg-type]
    except OmegaConfBaseException as error:
        raise ValueError(f"{path.name} does not fit the configuration: {error}") from error
