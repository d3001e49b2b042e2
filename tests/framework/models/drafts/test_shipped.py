"""The heads of ``tiny`` as they ship: our kernels against the torch modules that they were trained as."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from experiments.tiny.heads import Head, trunk_features
from experiments.tiny.model import load_exported
from experiments.tiny.train_heads import load_head as load_trained
from framework.config import ModelConfig
from framework.models.decoder import Decoder
from framework.models.drafts.head import DraftHead
from framework.models.drafts.load import load_head, read_head
from framework.models.drafts.medusa import Medusa
from framework.models.hub import resolve_head
from framework.models.load import load_model
from framework.models.parallel import Parallel
from framework.models.read import read_model
from framework.plan import KernelPlan

from ..harness import BLOCK, CPU, Session, build
from .test_numbers import ERROR, LENGTH, NUM_DRAFTS, Inputs, Rows, error


def trained(method: str) -> tuple[LlamaForCausalLM, Head]:
    """The trunk and the head in plain torch."""
    assets = resolve_head("tiny").parent
    trunk = load_exported(assets / "tiny")
    return trunk, load_trained(assets / f"tiny-{method}", method, trunk)


def ours(method: str) -> DraftHead:
    config = ModelConfig("tiny", dtype="float32")
    info, plan = read_model(config), KernelPlan({}, [], CPU, torch.float32)
    target = load_model(config, info, plan, CPU, Parallel(), BLOCK)
    return load_head(method, read_head(method, resolve_head(f"tiny-{method}"), info), target, plan, CPU, BLOCK)


@pytest.mark.parametrize("method", ["medusa", "eagle3", "mtp"])
def test_chains_of_drafts(method: str) -> None:
    trunk, plain = trained(method)
    tokens = torch.randint(3, 2048, (1, LENGTH + 1), generator=torch.Generator().manual_seed(1))
    features, head = trunk_features(trunk, tokens), ours(method)
    with torch.inference_mode():
        wanted = plain.unroll(features, NUM_DRAFTS)
    given = Inputs(tokens[0, 1:], features.hidden[0], features.aux[0])
    if isinstance(head, Medusa):
        with torch.inference_mode():
            drafts = head.draft_logits(given.hidden, NUM_DRAFTS)
        found = [list(rows) for rows in drafts[: LENGTH - NUM_DRAFTS]]
    else:
        found = Rows(head).chains(given)
    for start, chain in enumerate(found):
        for draft, logits in enumerate(chain):
            assert error(logits, wanted[draft][0, start + draft].double()) < ERROR
    if head.target_ids is not None:
        assert torch.equal(head.target_ids, plain.target_ids)


def test_the_target_gives_the_states_before_the_layers_that_a_head_asks_for() -> None:
    """The final state first, whose logits are the target's; and the same when it is decoded."""
    model, layers = build(ModelConfig("tiny", dtype="float32")), (0, 2, 3, 5)
    assert isinstance(model, Decoder)
    model.aux_layers = layers
    tokens, session = torch.randint(3, 2048, (1, 12), generator=torch.Generator().manual_seed(1)), Session(model, 1)
    with torch.inference_mode():
        wanted = load_exported(resolve_head("tiny").parent / "tiny")(tokens, output_hidden_states=True)
        states = []
        for part in tokens[0].split(11):
            batch = session.batch([(0, part.tolist())])
            model.begin_step(batch)
            states.append(model.forward(batch))
        found = torch.cat(states)
        assert error(model.logits(found), wanted.logits[0].double()) < ERROR
    for own, index in zip(found.chunk(1 + len(layers), dim=-1), (-1, *layers), strict=True):
        assert error(own, wanted.hidden_states[index][0].double()) < ERROR
