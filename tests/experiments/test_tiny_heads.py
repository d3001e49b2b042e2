"""How the drafting heads of ``tiny`` are trained and measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from experiments.tiny.acceptance import acceptance, head_drafter, model_drafter, walk
from experiments.tiny.data import HalfAndHalf, WindowStream
from experiments.tiny.evaluate import choose_prompts
from experiments.tiny.heads import Eagle3Head, Features, Head, MtpHead
from experiments.tiny.model import load_exported
from experiments.tiny.samples import generate
from experiments.tiny.train_heads import load_head
from framework import LLM, SamplingParams
from framework.corpus import load_corpus

from ..framework.models.drafts.layouts import CONFIG
from ..framework.models.drafts.plain import VOCAB, H, PlainEagle3, PlainMtp, random_tensors

ASSETS = Path(__file__).parents[2] / "framework" / "assets"
LENGTH, NUM_STEPS = 17, 4


def trunk() -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = {key: value for key, value in CONFIG.items() if key not in ("model_type", "torch_dtype")}
    return LlamaForCausalLM(LlamaConfig(**config, tie_word_embeddings=False)).eval().requires_grad_(False)


@pytest.mark.parametrize("kind", ["eagle3", "mtp"])
def test_a_chain_sees_what_a_run_would_see(kind: str) -> None:
    """Unrolled over all places at once, against chains that are computed each from its beginning."""
    model = trunk()
    head: Head = Eagle3Head(model, torch.arange(50)) if kind == "eagle3" else MtpHead(model)
    head.load_state_dict(random_tensors({name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}))
    tensors = {name: tensor.double() for name, tensor in head.state_dict().items()}
    embedding, projection = (x.weight.detach().double() for x in (model.model.embed_tokens, model.lm_head))
    plain = (PlainEagle3 if kind == "eagle3" else PlainMtp)(tensors, embedding, projection)
    ids = torch.randint(VOCAB, (LENGTH,), generator=torch.Generator().manual_seed(1))
    hidden, aux = torch.randn(LENGTH, H), torch.randn(LENGTH, 3 * H)
    with torch.no_grad():
        steps = head.unroll(Features(model.model.embed_tokens(ids)[None], hidden[None], aux[None], torch.empty(0)), NUM_STEPS)
    for start in range(LENGTH - NUM_STEPS):
        wanted = plain.chain(ids, hidden.double(), aux.double(), start, NUM_STEPS)
        for step, logits in enumerate(wanted):
            found = steps[step][0, start + step].double()
            assert (found - logits).abs().max() < 1e-4 * logits.abs().max()


def test_a_walk_skips_what_was_accepted() -> None:
    right = torch.tensor([[1, 1, 0, 1, 1, 1, 1], [0, 1, 1, 1, 0, 1, 1]], dtype=torch.bool)  # two drafts, seven slots
    # From slot 0 both drafts are right (slot 0 of step 1, slot 1 of step 2): on to slot 3, whose second is wrong: on to slot 5.
    assert walk(right, 0) == [2, 1, 2]
    assert walk(right, 2) == [0, 1, 2]


def test_tiny_accepts_all_of_its_own_drafts() -> None:
    """The noise of the measurement is the engine's: with another text's, drafts of the same model are refused."""
    tiny, llm = load_exported(ASSETS / "tiny"), LLM("tiny", dtype="float32")
    params = [SamplingParams(temperature=0.8, seed=seed, max_tokens=40, ignore_eos=True) for seed in range(2)]
    outputs = llm.generate(["def f(x):\n", "class A:\n"], params, use_tqdm=False)
    texts = [np.asarray([*(o.prompt_token_ids or ()), *o.outputs[0].token_ids], np.uint16) for o in outputs]
    found = acceptance(model_drafter(tiny, 3), texts, 40, 0.8, 3)
    assert found.mean_length == 4 and found.rates == (1, 1, 1)
    assert acceptance(model_drafter(tiny, 3), texts[::-1], 40, 0.8, 3).mean_length < 3.5


def test_half_of_a_batch_is_of_each_stream() -> None:
    def stream(start: int) -> WindowStream:
        return WindowStream([np.arange(start, start + 40, dtype=np.uint16)] * 9, [False] * 9, 1.0, 3)

    both = HalfAndHalf(stream(0), stream(1000))
    batches = [both.next_batch(8, 4) for _ in range(5)]
    assert all(bool((batch[:2] < 40).all() and (batch[2:] >= 1000).all()) for batch in batches)
    again = HalfAndHalf(stream(0), stream(1000))
    [again.next_batch(8, 4) for _ in range(2)]
    third = HalfAndHalf(stream(0), stream(1000))
    third.load_state_dict(again.state_dict())
    assert torch.equal(third.next_batch(8, 4), batches[2])


@pytest.fixture(scope="module")
def heldout() -> Any:
    """Text of tiny behind held-out prompts at two temperatures."""
    cfg = OmegaConf.create({"assets_dir": str(ASSETS), "main": {"name": "tiny"}, "samples": {"batch": 32}})
    tokenizer = Tokenizer.from_file(str(ASSETS / "tiny" / "tokenizer.json"))
    prompts = choose_prompts(tokenizer, load_corpus().heldout, 24, 96, seed=7)
    return {temperature: generate(cfg, prompts, [temperature], 48) for temperature in (0.0, 0.8)}


@pytest.mark.parametrize("part", ["eagle3", "mtp"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_heads_are_accepted_more_often_than_the_draft_model(heldout: Any, part: str, temperature: float) -> None:
    tiny, draft = load_exported(ASSETS / "tiny"), load_exported(ASSETS / "tiny-draft")
    drafters = head_drafter(load_head(ASSETS / f"tiny-{part}", part, tiny), tiny, 3), model_drafter(draft, 3)
    ours, theirs = (acceptance(drafter, heldout[temperature], 48, temperature, 3).mean_length for drafter in drafters)
    assert ours > theirs > 1.5
