"""The numbers of drafting heads, teacher-forced whole, in chunks and as chains of drafts, against plain float64."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from framework.engine.kv_cache.spec import group_layers
from framework.models.drafts.head import DraftHead
from framework.models.drafts.medusa import Medusa

from ..harness import Session
from .layouts import CONFIG, LAYOUTS, Made, drafted_ids, make, make_target, write
from .plain import DRAFT_VOCAB, VOCAB, H, random_tensors

LENGTH, NUM_DRAFTS, ERROR = 22, 3, 1e-4
MEDUSA = {"original": "medusa_lm_head.pt", "blocks": "model.safetensors", "shared": "model.safetensors"}


@dataclass(frozen=True)
class Inputs:
    """Of each slot: the token after it, and random states of a target."""

    next_ids: Tensor
    hidden: Tensor
    aux: Tensor


def inputs() -> Inputs:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(VOCAB, (LENGTH,), generator=generator)
    return Inputs(ids, torch.randn(LENGTH, H, generator=generator), torch.randn(LENGTH, 3 * H, generator=generator))


class Rows:
    """Steps one request through a head."""

    def __init__(self, head: DraftHead) -> None:
        head.set_groups(group_layers(head.cache_specs()))
        self.head, self.session = head, Session(head, 1)  # type: ignore[arg-type]

    @torch.inference_mode()
    def step(self, next_ids: Tensor, hidden: Tensor, aux: Tensor | None) -> Tensor:
        batch = self.session.batch([(0, next_ids.tolist())])
        self.head.begin_step(batch)
        return self.head.forward(batch.token_ids, batch.positions, hidden, aux, batch)

    def whole(self, given: Inputs, chunk: int) -> Tensor:
        pieces = zip(given.next_ids.split(chunk), given.hidden.split(chunk), given.aux.split(chunk))
        return torch.cat([self.step(*piece) for piece in pieces])

    def chains(self, given: Inputs) -> list[list[Tensor]]:
        """Logits of the chains from each slot; after a chain the cache is as if it had not been."""
        out: list[list[Tensor]] = []
        for start in range(LENGTH - NUM_DRAFTS):
            here = slice(start, start + 1)
            hidden, found = self.step(given.next_ids[here], given.hidden[here], given.aux[here]), []
            for draft in range(NUM_DRAFTS):
                found.append(self.head.logits(hidden)[0])
                if draft + 1 < NUM_DRAFTS:
                    hidden = self.step(given.next_ids[start + 1 + draft][None], hidden, None)
            self.session.lengths[0] = start + 1
            out.append(found)
        return out


def expected(made: Made, given: Inputs, start: int, num_drafts: int) -> list[Tensor]:
    return made.plain.chain(given.next_ids, given.hidden.double(), given.aux.double(), start, num_drafts)


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("name", LAYOUTS)
def test_first_drafts_whole_and_in_chunks(name: str, tmp_path: Path) -> None:
    made, given = make(name, tmp_path), inputs()
    wanted = torch.stack([expected(made, given, slot, 1)[0] for slot in range(LENGTH)])
    for chunk in (LENGTH, 9, 1):
        head = made.load()
        with torch.inference_mode():
            assert error(head.logits(Rows(head).whole(given, chunk)), wanted) < ERROR


@pytest.mark.parametrize("name", LAYOUTS)
def test_chains_of_drafts(name: str, tmp_path: Path) -> None:
    made, given = make(name, tmp_path), inputs()
    for start, found in enumerate(Rows(made.load()).chains(given)):
        wanted = expected(made, given, start, NUM_DRAFTS)
        assert max(error(f, w) for f, w in zip(found, wanted, strict=True)) < ERROR


def test_inputs_are_left_as_they_were(tmp_path: Path) -> None:
    made, given = make("eagle3", tmp_path), inputs()
    rows, state = Rows(made.load()), given.hidden.clone()
    rows.step(given.next_ids, given.hidden, given.aux)
    rows.step(given.next_ids[:1], given.hidden[:1], None)
    assert torch.equal(given.hidden, state)


def test_drafts_in_the_words_of_the_target(tmp_path: Path) -> None:
    head = make("eagle3", tmp_path).load()
    assert head.target_ids is not None
    assert head.vocab_size == len(head.target_ids) == DRAFT_VOCAB
    assert torch.equal(head.target_ids, drafted_ids())
    assert head.aux_layers == (1, 3, 5)


def test_a_head_may_know_fewer_positions_than_its_target(tmp_path: Path) -> None:
    made = make("eagle1", tmp_path)
    assert made.load().max_model_len == 96
    tensors = torch.load(made.folder / "pytorch_model.bin", weights_only=True)
    write(made.folder, tensors, {**CONFIG, "num_hidden_layers": 1, "max_position_embeddings": 40}, "pytorch_model.bin")
    assert made.load().max_model_len == 40


@pytest.mark.parametrize("layout", MEDUSA)
def test_medusa(layout: str, tmp_path: Path) -> None:
    """Three heads of two blocks; of the original with biases and projections, of the other with fewer tokens or the target's."""
    target, rows = make_target(tmp_path / "target"), 30 if layout == "blocks" else VOCAB
    block, bias = ("{}.{}.linear", True) if layout == "original" else ("blocks.{}.layers.{}", False)
    projection = "{}.2.weight" if layout == "original" else "lm_heads.{}.weight"
    shapes: dict[str, tuple[int, ...]] = {f"{block.format(i, j)}.weight": (H, H) for i in range(3) for j in range(2)}
    shapes |= {f"{block.format(i, j)}.bias": (H,) for i in range(3) for j in range(2) if bias}
    shapes |= {projection.format(i): (rows, H) for i in range(3) if layout != "shared"}
    tensors = random_tensors(shapes)
    config: dict[str, Any] = {"num_heads": 3, "num_hidden_layers": 2, "hidden_size": H, "vocab_size": VOCAB}
    config = {"medusa_num_heads": 3, "medusa_num_layers": 2} if layout == "original" else {**config, "truncated_vocab_size": rows}
    token_map = {"token_map": torch.arange(5, 5 + 2 * rows, 2)} if layout == "blocks" else {}
    write(tmp_path / "head", {**tensors, **token_map}, config, MEDUSA[layout])
    head = Made(tmp_path / "target", tmp_path / "head", "medusa", None).load()  # type: ignore[arg-type]
    assert isinstance(head, Medusa) and head.cache_specs() == []
    if token_map:
        assert head.target_ids is not None and torch.equal(head.target_ids, token_map["token_map"])
    x = torch.randn(7, H, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        found = head.draft_logits(x, 3)
    for i in range(3):
        y = x.double()
        for j in range(2):
            name = block.format(i, j)
            linear = y @ tensors[f"{name}.weight"].double().T + tensors.get(f"{name}.bias", torch.zeros(H)).double()
            y = y + linear * linear.sigmoid()
        wanted = y @ (target["lm_head.weight"] if layout == "shared" else tensors[projection.format(i)]).double().T
        assert error(found[:, i], wanted) < ERROR
