"""``use_beam_search`` gives the beams of the offline interface."""

from __future__ import annotations

import pytest

from framework import AsyncEngine, BeamSearchParams
from framework.llm import LLM

from .servers import HTTPServer

PROMPT = "def main():\n"
BEAMS = {"use_beam_search": True, "n": 4, "max_tokens": 8}


def test_choices_are_the_best_beams(server: HTTPServer, offline: LLM) -> None:
    (whole,) = offline.beam_search([PROMPT], BeamSearchParams(4, 8, length_penalty=0.5))
    prompt = offline.get_tokenizer().encode(PROMPT)
    status, answer = server.post(
        "/v1/completions", prompt=PROMPT, length_penalty=0.5, return_token_ids=True, logprobs=2, temperature=0, **BEAMS
    )
    assert status == 200, answer
    assert [choice["token_ids"] for choice in answer["choices"]] == [beam.tokens[len(prompt) :] for beam in whole.sequences]
    assert [PROMPT + choice["text"] for choice in answer["choices"]] == [
        offline.get_tokenizer().decode(beam.tokens, skip_special_tokens=True) for beam in whole.sequences
    ]
    for choice, beam in zip(answer["choices"], whole.sequences):
        assert sum(choice["logprobs"]["token_logprobs"]) == pytest.approx(beam.cum_logprob, abs=1e-4)
        assert all(len(top) <= 3 for top in choice["logprobs"]["top_logprobs"])


def test_several_prompts_and_chats(server: HTTPServer) -> None:
    status, answer = server.post("/v1/completions", prompt=[PROMPT, "import"], **BEAMS)
    assert status == 200 and [choice["index"] for choice in answer["choices"]] == list(range(8))
    status, answer = server.post("/v1/chat/completions", messages=[{"role": "user", "content": "a"}], **BEAMS)
    assert status == 200 and len({choice["message"]["content"] for choice in answer["choices"]}) == 4


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("stream", {"stream": True}),
        ("stop", {"stop": ["a"]}),
        ("prompt_logprobs", {"prompt_logprobs": 1}),
        ("prompt_logprobs", {"prompt_logprobs": 0}),
        ("prompt_logprobs", {"echo": True, "logprobs": 0}),
        ("logit_bias", {"logit_bias": {"5": 1}}),
        ("stop_token_ids", {"stop_token_ids": [5]}),
        ("allowed_token_ids", {"allowed_token_ids": [5]}),
        ("bad_words", {"bad_words": ["a"]}),
        ("structured_outputs", {"structured_outputs": {"choice": ["a"]}}),
        ("structured_outputs", {"response_format": {"type": "json_object"}}),
        ("min_tokens", {"min_tokens": 2}),
        ("top_p", {"top_p": 0.5}),
        ("top_k", {"top_k": 5}),
        ("min_p", {"min_p": 0.5}),
        ("presence_penalty", {"presence_penalty": 1}),
        ("frequency_penalty", {"frequency_penalty": 1}),
        ("repetition_penalty", {"repetition_penalty": 2}),
        ("spaces_between_special_tokens", {"spaces_between_special_tokens": False}),
        ("logprobs", {"n": 11}),
        ("length_penalty", {"length_penalty": 1000}),
    ],
)
def test_what_beams_cannot_do(server: HTTPServer, param: str, body: dict) -> None:
    status, answer = server.post("/v1/completions", **{"prompt": PROMPT, **BEAMS, **body})
    assert status == 400 and param in answer["error"]["message"], answer


def test_defaults_that_are_written_out_and_what_means_nothing_to_a_search_are_taken(server: HTTPServer) -> None:
    defaults = {"top_p": 1, "min_p": 0, "min_tokens": 0, "presence_penalty": 0, "repetition_penalty": 1}
    defaults |= {"top_k": -1, "stop": [], "logit_bias": {}, "bad_words": [], "spaces_between_special_tokens": True}
    _, plain = server.post("/v1/completions", prompt=PROMPT, **BEAMS)
    status, answer = server.post("/v1/completions", prompt=PROMPT, temperature=0.5, seed=3, **defaults, **BEAMS)
    assert status == 200 and answer["choices"] == plain["choices"]


def test_what_the_model_recommends_for_sampling_is_not_asked_for(
    engine: AsyncEngine, server: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.inputs, "_generation", {"top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1})
    status, answer = server.post("/v1/completions", prompt=PROMPT, **BEAMS)
    assert status == 200, answer
    status, answer = server.post("/v1/completions", prompt=PROMPT, top_k=21, **BEAMS)
    assert status == 400 and answer["error"]["param"] == "top_k"
