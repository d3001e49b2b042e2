"""Models that read images: log-probabilities of text around images against transformers, at every position."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from framework import LLM, SamplingParams

from .checkpoints import KINDS, make, picture
from .harness import log_probabilities, serve, token_ids, with_logprobs

PROMPTS: list[tuple[str, list[Image.Image]]] = [
    ("{}Hello there", [picture(1)]),
    ("Hi {} what", [picture(2, 60, 25)]),
    ("Look: {}", [picture(3, 25, 60)]),
    ("{}{}two", [picture(4), picture(5, 33, 64)]),
]
"""Images at the start, in the middle, at the end, and two side by side."""


def processor_of(llm: LLM) -> Any:
    """The library's; of classes with a part for videos, which want torchvision, the one that was made of the other parts."""
    assert llm.engine.inputs.image_prompts is not None
    ours = llm.engine.inputs.image_prompts._processor
    return ours if hasattr(ours, "video_token") else AutoProcessor.from_pretrained(llm.engine.config.model.name)


def reference(theirs: Any, llm: LLM, prompt: str, images: list[Image.Image], tokens: list[int]) -> torch.Tensor:
    """f32 [T, V]: log-probabilities by transformers, of its processor's inputs with the generated tokens behind them."""
    processor = processor_of(llm)
    pixels = [np.asarray(image) for image in images]
    found = processor(images=pixels, text=[prompt], input_data_format="channels_last", return_tensors="pt")
    ids = found.pop("input_ids")
    assert ids[0].tolist() == tokens[: ids.shape[1]], "a prompt's tokens are those of the library's processor"
    del found["attention_mask"]
    for name in {"mm_token_type_ids", "token_type_ids"} & set(found):
        found[name] = torch.nn.functional.pad(found[name], (0, len(tokens) - ids.shape[1]))
    with torch.inference_mode():
        return theirs(input_ids=torch.tensor([tokens]), **found).logits[0].log_softmax(-1)


@pytest.mark.parametrize("name", KINDS)
def test_log_probabilities_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """Whole prompts and chunks; of Gemma 3 a chunk holds an image of 16 tokens, and no less."""
    theirs = make(name, tmp_path)
    for chunk in (512, 16):
        llm = serve(tmp_path, max_num_batched_tokens=chunk)
        prompts = [(text.format(*[KINDS[name].template] * len(images)), images) for text, images in PROMPTS]
        given = [{"prompt": text, "multi_modal_data": {"image": images}} for text, images in prompts]
        outputs = llm.generate(given, with_logprobs(5), use_tqdm=False)
        assert (llm.engine.stats().num_chunked_prefills > 0) == (chunk == 16)
        for (text, images), output in zip(prompts, outputs):
            expected = reference(theirs, llm, text, images, token_ids(output))[:-1]
            torch.testing.assert_close(log_probabilities(output), expected, atol=1e-4, rtol=0)
        llm.shutdown()


def test_an_image_matters(tmp_path: Path) -> None:
    """So that the comparison above is of more than text."""
    theirs = make("qwen2_vl", tmp_path)
    llm = serve(tmp_path)
    text = f"Hi {KINDS['qwen2_vl'].template} what"
    params = SamplingParams(max_tokens=1, temperature=0)
    prompts = [{"prompt": text, "multi_modal_data": {"image": picture(seed)}} for seed in (1, 2)]
    ids = llm.generate(prompts[0], params, use_tqdm=False)[0].prompt_token_ids
    assert ids is not None
    first, second = (reference(theirs, llm, text, [picture(seed)], ids)[-1] for seed in (1, 2))
    assert (first - second).abs().max() > 0.05


@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_weights_are_counted_before_they_are_loaded(name: str, tmp_path: Path) -> None:
    make(name, tmp_path)
    executor = serve(tmp_path).engine.executor
    assert executor.nominal_weight_bytes <= executor.weight_bytes < 1.3 * executor.nominal_weight_bytes


def test_checkpoints_without_a_tower_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    make("llava", tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    kept = {key: tensor for key, tensor in tensors.items() if "projector.linear_1" not in key}
    save_file(kept, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"does not fit its config.json.*multi_modal_projector\.linear_1"):
        serve(tmp_path)
    save_file({**tensors, "model.extra.weight": torch.zeros(1)}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"without a place in the model: model\.extra\.weight"):
        serve(tmp_path)
