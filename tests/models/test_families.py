"""Every native family against transformers: logits, what each feature is worth, greedy tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from framework.models import plugins
from framework.models.families import FAMILIES

from ..framework.models.checkpoints import Example, make
from ..framework.models.harness import Session, build, error, model_config, reference, sequences, teacher_forced
from .examples import EXAMPLES
from .examples.states import EXAMPLES as STATES

LENGTHS = (5, 23, 48)
Checkpoints = Callable[[str], tuple[Path, Any]]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    made: dict[str, tuple[Path, Any]] = {}

    def get(name: str) -> tuple[Path, Any]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = folder, make(EXAMPLES[name], folder)
        return made[name]

    return get


def rope_kind(example: Example) -> str | None:
    return example.config.get("rope_parameters", {}).get("rope_type")


def lengths_of(example: Example) -> tuple[int, ...]:
    """Scaling that depends on a sequence's length is fixed for the longest one here, so only that one can be compared."""
    return {"dynamic": (80,), "longrope": LENGTHS[-1:]}.get(str(rope_kind(example)), LENGTHS)


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("chunk", [None, 9])
def test_logits(name: str, chunk: int | None, checkpoints: Checkpoints) -> None:
    folder, theirs = checkpoints(name)
    model = build(model_config(folder, EXAMPLES[name]))
    tokens = sequences(lengths_of(EXAMPLES[name]))
    for ours, row in zip(teacher_forced(model, tokens, chunk, num_decodes=4), tokens):
        assert error(ours, reference(theirs, row)) <= 1e-4


@pytest.mark.parametrize("choice", ["reference", "torch"])
@pytest.mark.parametrize(
    "name", ["bloom", "falcon-rw", "cohere-norms", "glm", "gpt-oss", "hunyuan", "llama4-chunks", "nemotron", "olmo", "olmo2", "phi"]
)
def test_other_kernels(name: str, choice: str, checkpoints: Checkpoints) -> None:
    """The first tests take those of highest priority."""
    folder, theirs = checkpoints(name)
    model = build(model_config(folder, EXAMPLES[name]), {"default": choice})
    tokens = sequences(LENGTHS[:2])
    for ours, row in zip(teacher_forced(model, tokens, 9, num_decodes=4), tokens):
        assert error(ours, reference(theirs, row)) <= 1e-4


@pytest.mark.parametrize("name", STATES)
def test_where_a_prompt_is_cut_changes_no_bit_of_what_states_become(name: str, checkpoints: Checkpoints) -> None:
    """With the reference kernels; and what they say is what the library says."""
    folder, theirs = checkpoints(name)
    model, tokens = build(model_config(folder, EXAMPLES[name]), {"default": "reference"}), sequences(LENGTHS[:2])
    whole, cut = (teacher_forced(model, tokens, chunk, num_decodes=4) for chunk in (None, 9))
    for ours, same, row in zip(whole, cut, tokens):
        assert torch.equal(ours, same) and error(ours, reference(theirs, row)) <= 1e-4


@pytest.mark.parametrize(("name", "feature"), [(n, f) for n, e in EXAMPLES.items() for f in e.without])
def test_every_feature_matters(name: str, feature: str, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, theirs = checkpoints(name)
    without = EXAMPLES[name].without[feature]
    if without.family is not None:
        model_type = theirs.config.model_type
        monkeypatch.setattr(plugins, "FAMILIES", {**FAMILIES, model_type: without.family(FAMILIES[model_type])})
    model = build(model_config(folder, EXAMPLES[name], **without.config))
    tokens = sequences(LENGTHS[-1:])
    assert error(teacher_forced(model, tokens, None, num_decodes=1)[0], reference(theirs, tokens[0])) > 1e-2


@pytest.mark.parametrize("name", EXAMPLES)
def test_greedy_tokens(name: str, checkpoints: Checkpoints) -> None:
    folder, theirs = checkpoints(name)
    model = build(model_config(folder, EXAMPLES[name]))
    prompts = sequences((16,) if rope_kind(EXAMPLES[name]) == "dynamic" else (5, 7, 12, 16))
    session = Session(model, len(prompts))
    new = [int(logits[-1].argmax()) for logits in session.step(list(enumerate(prompts)))]
    grown = [[*prompt, token] for prompt, token in zip(prompts, new)]
    for _ in range(63):
        for i, logits in enumerate(session.step([(i, row[-1:]) for i, row in enumerate(grown)])):
            grown[i].append(int(logits[-1].argmax()))
    for prompt, row in zip(prompts, grown):
        expected = reference(theirs, row).argmax(-1)[len(prompt) - 1 : -1].tolist()
        assert row[len(prompt) :] == expected
    assert len({token for prompt, row in zip(prompts, grown) for token in row[len(prompt) :]}) >= 20
