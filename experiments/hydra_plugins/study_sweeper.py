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
from dataclasses import replace
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
from experiments.sweep_folder import SweepState, check_resumable, find_interrupted, is_finished, locked, progress
from framework.study.compose import StudyConfig, to_config
from framework.study.environment import code_version
from framework.study.statistics import FIRST_LOOK
from framework.study.sweep import AUTO


class StudySweeper(BasicSweeper):
    """One sweep. Bad input ends it with an error before any job runs, a folder that cannot be written at any time."""

    def sweep(self, arguments: list[str]) -> list[Any]:
        """Runs all jobs; returns nothing of them, their folders hold what they found."""
        try:
            self._sweep(arguments)
        except (ValueError, OSError) as error:
            sys.exit(f"error: {error}")
        return []

    def _sweep(self, arguments: list[str]) -> None:
        assert self.config is not None and self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        (self._settings,) = self.split_arguments(overrides, None)
        self._configs = [self._compose(setting) for setting in self._settings]
        check_sweep_keys(self._configs, self._settings)
        config = self._configs[0]
        num_repeats = config.max_repeats if config.repeats == AUTO else int(config.repeats)
        num_jobs = num_repeats * len(self._settings)
        asked, code = digest(self._configs), code_version()
        self._folder = self._choose_folder(config, asked, code)
        with locked(self._folder):
            check_resumable(self._folder, self._configs, num_jobs)
            OmegaConf.save(self.config, self._folder / "multirun.yaml")
            state = SweepState(asked, code, num_jobs, config.repeats == AUTO, time.time())
            state.write(self._folder)
            try:
                if config.repeats == AUTO:
                    self._repeat_until_narrow(config)
                else:
                    self._launch(range(num_repeats))
            except KeyboardInterrupt:
                how = f"interrupted: the same command goes on, or resume={self._folder}"
                print(f"\n{how}\n{progress(self._folder)}", file=sys.stderr)
                sys.exit(130)
            state.finished = True
            state.write(self._folder)
            raise_if_all_failed(self._folder)

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
            with read_write(self.config.hydra), open_dict(self.config.hydra):
                self.config.hydra.sweep.dir = str(resumed)
                hydra_overrides.append(f"hydra.sweep.dir={json.dumps(str(resumed))}")
            folder = resumed
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _launch(self, repeats: Sequence[int], only: Sequence[int] | None = None) -> None:
        """Hands the jobs of these repeats to the launcher, of the settings ``only`` (None = of all), but for those whose result is
        there."""
        assert self.launcher is not None
        chosen = range(len(self._settings)) if only is None else only
        jobs = [(repeat * len(self._settings) + index, index, repeat) for repeat in repeats for index in chosen]
        missing = [
            (job, [*self._settings[index], *([f"repeat={repeat}"] if repeat else [])])
            for job, index, repeat in jobs
            if not is_finished(self._folder / str(job), replace(self._configs[index], repeat=repeat or self._configs[index].repeat))
        ]
        if num_finished := len(jobs) - len(missing):
            print(f"{num_finished} of {len(jobs)} jobs finished before, not run again", flush=True)
        for batch in consecutive(missing, self.max_batch_size):
            for done in self.launcher.launch([overrides for _, overrides in batch], initial_job_idx=batch[0][0]):
                _ = done.return_value  # raises what the job raised

    def _repeat_until_narrow(self, config: StudyConfig) -> None:
        assert config.primary_metric is not None
        self._launch([0])
        check_metric(self._folder, config.primary_metric)
        num_repeats, last = min(FIRST_LOOK, config.max_repeats), config.max_repeats
        self._launch(range(1, num_repeats))
        while True:
            values = read_values(self._folder, config.primary_metric, num_repeats, len(self._settings))
            widths = halfwidths(values, self._settings)
            worst = max(widths, default=math.nan)
            needed = math.ceil(num_repeats * (worst / config.precision) ** 2) if math.isfinite(worst) else "unknown"
            known = f"{config.primary_metric} within {worst:.2%}, wanted {config.precision:.2%}"
            print(f"{num_repeats} repeats: {known}, which takes about {needed}", flush=True)
            worked = [index for index in range(len(self._settings)) if np.isfinite(values[:, index]).any()]
            if not widths:
                print("stopped: no setting that worked is left to compare", flush=True)
            if worst <= config.precision or num_repeats >= last or not widths:
                return
            self._launch([num_repeats], worked)
            num_repeats += 1
