"""Guesses of the next tokens under simulation: what makes them, and how long that takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..config import EngineConfig, ModelConfig, QuantConfig
from ..models.ranks import Stage
from ..models.read import ModelInfo, read_model
from .cost_model import DecodeRows, StageCost, StepWork
from .placement import Placement
from .shape import native
from .timers import Timers


class Drafting:
    """A draft model, or one more layer of the model with a head, on the devices of the last stage: it reads what the step read, and
    guesses token by token. Its weights and its cache are floats.

    rates   per guess, how probable it is that it and all before it are right
    model   what guesses
    placed  None where guesses cost nothing

    Raises ValueError for a draft model with another vocabulary, and for a method whose cost is not known.
    """

    def __init__(self, model: ModelInfo, config: EngineConfig, timers: Timers) -> None:
        spec, self._recorded = config.speculative_config, config.graphs.enabled
        self.rates, self.model, self.placed = spec.acceptance_rates(), model, None
        if spec.place == "host":
            return
        if spec.method == "draft_model":
            asked = ModelConfig(spec.model or "draft", load_format="dummy", dtype=model.dtype, architecture=spec.architecture)
            size, model = native(model, config).vocab_size, read_model(asked)
            found = native(model, config)
            if found.vocab_size != size:
                raise ValueError(
                    f"speculative_config.model={asked.name!r} cannot guess: its vocabulary has {found.vocab_size} tokens, "
                    f"the model's {size}; expected a draft model with the same tokens"
                )
            stage = Stage(range(len(found.layers)))
        elif spec.method not in ("eagle", "eagle3", "mtp"):
            raise ValueError(
                f"speculative_config.method={spec.method!r} cannot be simulated: what it costs is not known; choose draft_model, "
                "eagle, eagle3, mtp, or one on the host, which is taken as free"
            )
        else:
            whole, model = native(model, config), replace(model, quantization=None)
            names = {name: stored for name, stored in whole.family.names.items() if not name.startswith("vision_")}
            found = replace(whole, layers=whole.layers[-1:], family=replace(whole.family, names=names))
            stage = Stage(range(1), first=False)
        unquantized = replace(config, quant=QuantConfig())
        self.model, self.placed = model, Placement.of_native(model, found, unquantized, [stage], timers)

    @property
    def stage_costs(self) -> Sequence[StageCost]:
        """Of what guesses."""
        return self.placed.stage_costs if self.placed else ()

    def passes(self, work: StepWork, contexts: np.ndarray, num_proposals: int) -> list[StepWork]:
        """What runs after a step. contexts int64 [R]: of the requests that got tokens in it, and now get so many guesses;
        without any, what it read is read all the same."""
        if self.placed is None:
            return []
        count = len(contexts) if num_proposals else 0
        found = [StepWork(work.num_tokens, count, work.decodes, work.chunk_lens, work.chunk_ctx_lens, work.recorded)]
        if count:
            found += [StepWork(count, count, [DecodeRows(1, contexts)], recorded=self._recorded)] * (num_proposals - 1)
        return found

    def step(self, passes: Sequence[StepWork], counted: bool = True) -> tuple[float, int]:
        """(seconds, launches). counted: as of ``StageCost.step``."""
        found = [self.placed.step(one, counted)[0] for one in passes] if self.placed else []
        return sum(seconds for seconds, _ in found), sum(launches for _, launches in found)
