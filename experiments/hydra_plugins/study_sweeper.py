"""Our Hydra sweeper: every combination of the swept values, as Hydra's own, but repeated, interleaved and resumable.

Repeats are the outermost loop (A B A B): what the machine does in the meantime meets all settings alike, and run i of A and run i
of B, which serve the same requests, are neighbours in time too. With ``repeats=auto`` rounds follow one another until the 95 %
confidence interval of ``primary_metric`` is narrow enough, for every ratio to the first value of the first swept key. It stops by
the interval's width alone, never by where it lies: see ``framework.study.statistics.confidence_halfwidth``.

Hydra finds the sweeper here because it looks for the package ``hydra_plugins`` beside the script that is run.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf, open_dict, read_write

from experiments.repeating import (
    Overrides,
    check_metric,
    check_sweep_keys,
    consecutive,
    digest,
    halfwidths,
    raise_if_all_failed,
    read_values,
)
from experiments.sweep_folder import SweepState, check_resumable, find_interrupted, locked, progress
from framework.study.compose import StudyConfig, to_config
from framework.study.environment import code_version
from framework.study.statistics import FIRST_LOOK
from framework.study.sweep import AUTO


class StudySweeper(BasicSweeper):
    """One sweep. Bad input ends it with an error before any job runs."""

    def sweep(self, arguments: list[str]) -> list[Any]:
        """Runs all jobs; returns nothing of them, their folders hold what they found."""
        try:
            self._sweep(arguments)
        except ValueError as error:
            sys.exit(f"error: {error}")
        return []

    def _sweep(self, arguments: list[str]) -> None:
        assert self.config is not None and self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        (settings,) = self.split_arguments(overrides, None)
        configs = [self._compose(setting) for setting in settings]
        check_sweep_keys(configs, settings)
        config = configs[0]
        num_repeats = config.max_repeats if config.repeats == AUTO else int(config.repeats)
        asked, code = digest(configs), code_version()
        folder = self._choose_folder(config, asked, code)
        with locked(folder):
            check_resumable(folder, configs, num_repeats * len(settings))
            OmegaConf.save(self.config, folder / "multirun.yaml")
            state = SweepState(asked, code, num_repeats * len(settings), time.time())
            state.write(folder)
            try:
                if config.repeats == AUTO:
                    self._repeat_until_narrow(folder, settings, config)
                else:
                    self._launch(settings, range(num_repeats))
            except KeyboardInterrupt:
                print(f"\ninterrupted: the same command goes on, or resume={folder}\n{progress(folder)}", file=sys.stderr)
                sys.exit(130)
            state.finished = True
            state.write(folder)
            raise_if_all_failed(folder)

    def _compose(self, setting: Overrides) -> StudyConfig:
        """The config of a job. An unknown key raises here, by Hydra or by ValueError, before any job runs."""
        assert self.config is not None and self.hydra_context is not None
        composed = self.hydra_context.config_loader.load_sweep_config(self.config, list(setting))
        with read_write(composed), open_dict(composed):
            del composed["hydra"]
        return to_config(composed, OmegaConf.get_type(composed))  # type: ignore[arg-type]

    def _choose_folder(self, config: StudyConfig, asked: str, code: str) -> Path:
        """The new folder that Hydra proposes, or that of the sweep that goes on. Raises ValueError if that is none."""
        assert self.config is not None
        folder, hydra_overrides = Path(self.config.hydra.sweep.dir), self.config.hydra.overrides.hydra
        resumed = None
        if config.resume not in ("auto", "never"):
            resumed = Path(config.resume)
            if SweepState.read(resumed) is None:
                raise ValueError(f"resume={config.resume} is not the folder of a sweep: it holds no sweep.json of this version")
        elif config.resume == "auto" and not any(override.startswith("hydra.sweep.dir=") for override in hydra_overrides):
            resumed = find_interrupted(folder.parent, asked, code)
        if resumed is not None:
            print(f"going on with the sweep in {resumed}: what finished there is not run again (resume=never starts anew)")
            with read_write(self.config), open_dict(self.config):
                self.config.hydra.sweep.dir = str(resumed)
                hydra_overrides.append(f"hydra.sweep.dir={json.dumps(str(resumed))}")
            folder = resumed
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _launch(self, settings: Sequence[Overrides], repeats: Sequence[int], only: Sequence[int] | None = None) -> None:
        """Hands the jobs of these repeats to the launcher, of the settings ``only`` (None = of all)."""
        assert self.launcher is not None
        chosen = range(len(settings)) if only is None else only
        jobs = [
            (repeat * len(settings) + index, [*settings[index], *([f"repeat={repeat}"] if repeat else [])])
            for repeat in repeats
            for index in chosen
        ]
        for batch in consecutive(jobs, self.max_batch_size):
            for done in self.launcher.launch([overrides for _, overrides in batch], initial_job_idx=batch[0][0]):
                _ = done.return_value  # raises what the job raised

    def _repeat_until_narrow(self, folder: Path, settings: Sequence[Overrides], config: StudyConfig) -> None:
        assert config.primary_metric is not None
        self._launch(settings, [0])
        check_metric(folder, config.primary_metric)
        num_repeats, last = min(FIRST_LOOK, config.max_repeats), config.max_repeats
        self._launch(settings, range(1, num_repeats))
        while True:
            values = read_values(folder, config.primary_metric, num_repeats, len(settings))
            widths = halfwidths(values, settings)
            worst = max(widths, default=math.nan)
            print(f"{num_repeats} repeats: {config.primary_metric} within {worst:.2%}, wanted {config.precision:.2%}", flush=True)
            worked = [index for index in range(len(settings)) if np.isfinite(values[:, index]).any()]
            if not widths:
                print("stopped: no setting that worked is left to compare", flush=True)
            if worst <= config.precision or num_repeats >= last or not widths:
                return
            self._launch(settings, [num_repeats], worked)
            num_repeats += 1
