"""GritLM: embeddings of a Mistral that looks both ways, without its window, whose mean leaves the instruction out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from framework import SamplingParams
from framework.engine.pooling import Instruction

from .checkpoints import DECODER, REFERENCE, VOCAB, assert_same_direction, build, save

WINDOW = 7
PARTS = [
    ("<|user|>\nfind what fits\n<|embed|>\n", "the quick brown fox"),
    ("<|embed|>\n", "the lazy dog"),
    ("<|user|>\na <|embed|>\nb\n<|embed|>\n", "of two ends the one behind a line counts"),
    ("", "no instruction at all"),
]
TEXTS = [instruction + text for instruction, text in PARTS]


def tokenizer() -> PreTrainedTokenizerFast:
    """As Mistral's: a space before the text, unknown characters as bytes, and longer pieces made by merging."""
    words = ["▁<", "em", "emb", "embe", "embed", "us", "use", "user"]
    letters = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(10, 32)), *"▁<|>abcdefghijklmnopqrstuvwxyz"]
    vocab = {piece: number for number, piece in enumerate([*letters, *words])}
    merges = [(piece[:-1], piece[-1]) for piece in words]
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Replace("▁", " ")
    backend.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    assert len(vocab) < VOCAB
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def gritlm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    folder = tmp_path_factory.mktemp("gritlm")
    config = transformers.MistralConfig(**{**DECODER, "max_position_embeddings": 128}, sliding_window=WINDOW)
    model = save(folder, "MistralForCausalLM", config)
    tokenizer().save_pretrained(folder)
    found = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**found, "architectures": ["GritLM"]}))
    return folder, model


@torch.inference_mode()
def expected(model: PreTrainedModel, instruction: str, text: str) -> np.ndarray:
    """The library's states where every token sees every other; their mean behind the tokens of the instruction."""
    ids = tokenizer()(instruction + text, return_tensors="pt").input_ids
    both_ways = torch.zeros(1, 1, ids.shape[1], ids.shape[1])
    states = model.base_model(ids, attention_mask=both_ways).last_hidden_state[0].double().numpy()
    before = len(tokenizer()(instruction).input_ids) if instruction else 1
    return states[before:].mean(0)


def embed(folder: Path, texts: list[str], **given: Any) -> list[np.ndarray]:
    llm = build(folder, skip_tokenizer=False, **{"max_num_batched_tokens": 160, **given})
    return [np.float32(output.outputs.embedding) for output in llm.embed(texts, use_tqdm=False)]


def test_embeddings_are_those_of_transformers(gritlm: tuple[Path, PreTrainedModel]) -> None:
    folder, model = gritlm
    for vector, (instruction, text) in zip(embed(folder, TEXTS), PARTS, strict=True):
        assert_same_direction(vector, expected(model, instruction, text))


def test_raw_embeddings_are_means(gritlm: tuple[Path, PreTrainedModel]) -> None:
    folder, model = gritlm
    for vector, (instruction, text) in zip(embed(folder, TEXTS, pooler={"use_activation": False}), PARTS, strict=True):
        np.testing.assert_allclose(vector, expected(model, instruction, text), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernels", [None, REFERENCE])
def test_alone_as_in_a_batch(gritlm: tuple[Path, PreTrainedModel], kernels: dict[str, str] | None) -> None:
    together = embed(gritlm[0], TEXTS, kernels=kernels)
    for text, among in zip(TEXTS, together):
        assert np.array_equal(embed(gritlm[0], [text], kernels=kernels)[0], among)


def test_it_generates_as_a_mistral_with_its_window(gritlm: tuple[Path, PreTrainedModel]) -> None:
    folder, model = gritlm
    llm = build(folder, runner="generate", skip_tokenizer=False)
    [output] = llm.generate(TEXTS[:1], SamplingParams(temperature=0, max_tokens=12, ignore_eos=True), use_tqdm=False)
    ids = [*output.prompt_token_ids, *output.outputs[0].token_ids]
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0]
    assert logits.argmax(-1)[len(output.prompt_token_ids) - 1 : -1].tolist() == list(output.outputs[0].token_ids)
    assert llm.engine.executor.groups[0].spec.window == WINDOW


def test_where_an_instruction_ends() -> None:
    of_words = tokenizer()
    instruction = Instruction.of(of_words)
    for before, text in PARTS:
        prompt = of_words(before + text).input_ids
        assert instruction.length(prompt) == (len(of_words(before).input_ids) if before else 1)
        assert instruction.length(prompt[1:]) == instruction.length(prompt) - 1, "without the token that begins a prompt"
    for text in ("a <|embed|>\nb", "<|user|>\nno end", "<|user|>\nq<|embed|>\na"):
        assert instruction.length(of_words(text).input_ids) == 1, "what does not begin as an instruction is text, all of it"
    assert instruction.length([]) == 0


def test_what_cannot_be(gritlm: tuple[Path, PreTrainedModel]) -> None:
    folder, _ = gritlm
    with pytest.raises(ValueError, match="tokens are an instruction without a text behind it: there is nothing to embed"):
        embed(folder, ["<|user|>\nfind\n<|embed|>\n"])
    with pytest.raises(ValueError, match="GritLM cannot embed without its tokenizer"):
        build(folder)
    with pytest.raises(ValueError, match=r"model_type 'qwen3' cannot embed in this version, which looks both ways"):
        save(folder / "other", "Qwen3ForCausalLM", transformers.Qwen3Config(**DECODER))
        build(folder / "other", architecture={"architectures": ["GritLM"]})
