"""/v1/completions: what comes over HTTP is what the offline interface gives, streamed or not, in OpenAI's shapes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from framework import SamplingParams
from framework.llm import LLM

from .servers import HTTPServer

PATH = "/v1/completions"
PROMPTS = ["def main():\n", "import sys\n", "class A:\n", "# ä→😀\n"]
GREEDY = {"temperature": 0, "max_tokens": 24}


def complete(server: HTTPServer, **body: object) -> dict:
    status, answer = server.post(PATH, **body)
    assert status == 200, answer
    return answer


@pytest.mark.parametrize("prompt", PROMPTS)
def test_text_and_tokens_are_those_of_the_offline_interface(server: HTTPServer, offline: LLM, prompt: str) -> None:
    whole = offline.generate(prompt, SamplingParams(**GREEDY), use_tqdm=False)[0]
    answer = complete(server, prompt=prompt, return_token_ids=True, **GREEDY)
    choice = answer["choices"][0]
    assert (choice["text"], choice["token_ids"]) == (whole.outputs[0].text, whole.outputs[0].token_ids)
    assert choice["prompt_token_ids"] == whole.prompt_token_ids
    assert (choice["finish_reason"], choice["stop_reason"]) == (whole.outputs[0].finish_reason, whole.outputs[0].stop_reason)
    num_prompt, num_output = len(whole.prompt_token_ids), len(whole.outputs[0].token_ids)
    used = answer["usage"]
    assert (used["prompt_tokens"], used["completion_tokens"]) == (num_prompt, num_output)
    assert used["total_tokens"] == num_prompt + num_output and used["prompt_tokens_details"].keys() == {"cached_tokens"}
    assert answer["object"] == "text_completion" and answer["model"] == "tiny" and answer["id"].startswith("cmpl-")


def test_streams_add_up_to_the_offline_tokens_whatever_runs_beside_them(server: HTTPServer, offline: LLM) -> None:
    prompts = [f"def f{i}(a, b):\n" for i in range(24)]
    params = {"max_tokens": 24, "seed": 5, "temperature": 0.8, "top_k": 20}
    expected = offline.generate(prompts, SamplingParams(**params), use_tqdm=False)
    with ThreadPoolExecutor(24) as pool:
        streams = list(pool.map(lambda prompt: server.stream(PATH, prompt=prompt, return_token_ids=True, **params), prompts))
    for chunks, whole in zip(streams, expected):
        choices = [chunk["choices"][0] for chunk in chunks]
        assert "".join(choice["text"] for choice in choices) == whole.outputs[0].text
        assert [token for choice in choices for token in choice["token_ids"]] == whole.outputs[0].token_ids
        assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + [whole.outputs[0].finish_reason]
        assert ["system_fingerprint" in chunk for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
        assert len({chunk["id"] for chunk in chunks}) == 1 and all("usage" not in chunk for chunk in chunks)


def test_several_prompts_and_completions_are_told_apart_by_their_index(server: HTTPServer) -> None:
    body = {"prompt": PROMPTS[:3], "n": 2, "max_tokens": 6, "seed": 3}
    answer = complete(server, **body)
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    alone = [complete(server, **{**body, "prompt": prompt})["choices"] for prompt in PROMPTS[:3]]
    assert [choice["text"] for choice in answer["choices"]] == [choice["text"] for row in alone for choice in row]
    streamed = [""] * 6
    for chunk in server.stream(PATH, **body):
        for choice in chunk["choices"]:
            streamed[choice["index"]] += choice["text"]
    assert streamed == [choice["text"] for choice in answer["choices"]]


def test_usage_in_a_stream(server: HTTPServer) -> None:
    body = {"prompt": PROMPTS[:2], "temperature": 0, "max_tokens": 5, "ignore_eos": True}
    *chunks, last = server.stream(PATH, stream_options={"include_usage": True}, **body)
    assert all("usage" not in chunk for chunk in chunks) and last["choices"] == []
    assert last["usage"]["completion_tokens"] == 10 == complete(server, **body)["usage"]["completion_tokens"]
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = server.stream(PATH, stream_options=options, **{**body, "prompt": PROMPTS[0]})
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3, 4, 5]
    assert last["usage"] == chunks[-1]["usage"]


def test_log_probabilities_are_the_offline_ones_and_offsets_point_into_the_text(server: HTTPServer, offline: LLM) -> None:
    params = {"temperature": 0, "max_tokens": 12, "logprobs": 3}
    whole = offline.generate(PROMPTS[1], SamplingParams(**params), use_tqdm=False)[0].outputs[0]
    choice = complete(server, prompt=PROMPTS[1], **params)["choices"][0]
    told = choice["logprobs"]
    assert told["token_logprobs"] == pytest.approx([p[t].logprob for p, t in zip(whole.logprobs, whole.token_ids)])
    for token, offset, top, expected in zip(told["tokens"], told["text_offset"], told["top_logprobs"], whole.logprobs):
        assert choice["text"][offset : offset + len(token)] == token
        assert top == pytest.approx({p.decoded_token: p.logprob for p in expected.values()})
    pieces = [chunk["choices"][0]["logprobs"] for chunk in server.stream(PATH, prompt=PROMPTS[1], **params)]
    for name, expected in told.items():
        assert [value for piece in pieces for value in piece[name]] == expected


def test_echo_tells_the_prompt_and_its_log_probabilities(server: HTTPServer, offline: LLM) -> None:
    params = {"temperature": 0, "max_tokens": 4, "logprobs": 1}
    whole = offline.generate(PROMPTS[0], SamplingParams(**params, prompt_logprobs=1), use_tqdm=False)[0]
    choice = complete(server, prompt=PROMPTS[0], echo=True, **params)["choices"][0]
    assert choice["text"] == PROMPTS[0] + whole.outputs[0].text
    expected = [p and p[t].logprob for p, t in zip(whole.prompt_logprobs, whole.prompt_token_ids)]
    found = choice["logprobs"]["token_logprobs"]
    assert found[0] is None and found[1 : len(expected)] == pytest.approx(expected[1:])
    assert len(found) == len(expected) + 4 and choice["logprobs"]["text_offset"][0] == 0
    only = complete(server, prompt=PROMPTS[0], echo=True, **{**params, "max_tokens": 0})
    assert only["choices"][0]["text"] == PROMPTS[0] and only["usage"]["completion_tokens"] == 0
    assert only["choices"][0]["logprobs"]["token_logprobs"][1:] == pytest.approx(expected[1:])
    first, *rest = server.stream(PATH, prompt=PROMPTS[0], echo=True, **params)
    assert first["choices"][0]["text"].startswith(PROMPTS[0])
    assert "".join(chunk["choices"][0]["text"] for chunk in [first, *rest]) == choice["text"]
    by_tokens = complete(server, prompt=whole.prompt_token_ids, echo=True, temperature=0, max_tokens=4)["choices"][0]["text"]
    assert by_tokens.endswith(choice["text"]), "the special token at the start has a text, too"


def test_echoed_prompts_are_told_apart_and_as_they_were_cut(server: HTTPServer, offline: LLM) -> None:
    body = {"prompt": ["import sys, os\n", "class A:\n"], "echo": True, "logprobs": 0, "temperature": 0, "max_tokens": 3}
    whole = complete(server, **body)["choices"]
    chunks = [choice for chunk in server.stream(PATH, **body) for choice in chunk["choices"]]
    for expected in whole:
        told = [choice["logprobs"] for choice in chunks if choice["index"] == expected["index"]]
        for name, values in expected["logprobs"].items():
            assert [value for piece in told for value in piece[name]] == values
    tokenizer = offline.get_tokenizer()
    cut = complete(server, **body, truncate_prompt_tokens=2)["choices"][0]["text"]
    assert cut.startswith(tokenizer.decode(tokenizer.encode(body["prompt"][0])[-2:])) and "import" not in cut


def test_prompt_log_probabilities_as_vllm_tells_them(server: HTTPServer, offline: LLM) -> None:
    whole = offline.generate(PROMPTS[2], SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=2), use_tqdm=False)[0]
    choice = complete(server, prompt=PROMPTS[2], max_tokens=1, temperature=0, prompt_logprobs=2)["choices"][0]
    first, *others = choice["prompt_logprobs"]
    assert first is None and len(others) == len(whole.prompt_token_ids) - 1
    for found, expected in zip(others, whole.prompt_logprobs[1:]):
        assert {int(i): p["rank"] for i, p in found.items()} == {i: p.rank for i, p in expected.items()}
        assert {int(i): p["logprob"] for i, p in found.items()} == pytest.approx({i: p.logprob for i, p in expected.items()})


def test_tokens_can_be_named_by_their_ids(server: HTTPServer) -> None:
    body = {"prompt": PROMPTS[0], "temperature": 0, "max_tokens": 3, "logprobs": 0, "return_token_ids": True}
    choice = complete(server, return_tokens_as_token_ids=True, **body)["choices"][0]
    assert choice["logprobs"]["tokens"] == [f"token_id:{token}" for token in choice["token_ids"]]


def test_stop_strings_and_tokens_are_told_as_the_reason(server: HTTPServer) -> None:
    text = complete(server, prompt=PROMPTS[0], **GREEDY)["choices"][0]["text"]
    stop = text[4:9]
    choice = complete(server, prompt=PROMPTS[0], stop=["never there", stop], **GREEDY)["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (text[: text.index(stop)], "stop", stop)
    kept = complete(server, prompt=PROMPTS[0], stop=stop, include_stop_str_in_output=True, **GREEDY)["choices"][0]
    assert kept["text"] == text[: text.index(stop)] + stop
    tokens = complete(server, prompt=PROMPTS[0], return_token_ids=True, **GREEDY)["choices"][0]["token_ids"]
    ended = complete(server, prompt=PROMPTS[0], stop_token_ids=[tokens[2]], **GREEDY)["choices"][0]
    assert (ended["finish_reason"], ended["stop_reason"]) == ("stop", tokens[2])


def test_seeds_repeat_and_biases_count(server: HTTPServer) -> None:
    body = {"prompt": PROMPTS[0], "max_tokens": 8, "seed": 11, "return_token_ids": True}
    assert complete(server, **body)["choices"][0]["text"] == complete(server, **body)["choices"][0]["text"]
    forced = complete(server, logit_bias={"100": 100}, **body)["choices"][0]
    assert forced["token_ids"] == [100] * 8
    allowed = complete(server, allowed_token_ids=[7, 8], **body)["choices"][0]
    assert set(allowed["token_ids"]) <= {7, 8}


def test_null_stands_for_the_default(server: HTTPServer) -> None:
    names = (
        "temperature",
        "top_p",
        "n",
        "seed",
        "stop",
        "logprobs",
        "stream",
        "stream_options",
        "echo",
        "suffix",
        "logit_bias",
        "user",
    )
    answer = complete(server, prompt=PROMPTS[0], **dict.fromkeys(names))
    assert len(answer["choices"]) == 1 and answer["usage"]["completion_tokens"] <= 16


def test_prompts_are_cut_on_request(server: HTTPServer) -> None:
    ids = list(range(100, 120))
    body = {"prompt": ids, "max_tokens": 1, "return_token_ids": True}
    last = complete(server, truncate_prompt_tokens=5, **body)["choices"][0]
    assert last["prompt_token_ids"] == ids[-5:]
    first = complete(server, truncate_prompt_tokens=5, truncation_side="right", **body)["choices"][0]
    assert first["prompt_token_ids"] == ids[:5]
    long = complete(server, prompt=ids * 200, max_tokens=8, truncate_prompt_tokens=-1)
    assert long["usage"]["prompt_tokens"] == 2048 - 8


def test_a_client_may_name_its_request(server: HTTPServer) -> None:
    assert complete(server, prompt="a", max_tokens=1, request_id="mine")["id"] == "cmpl-mine"
    _, answer = server.request("POST", PATH, {"prompt": "a", "max_tokens": 1}, {"X-Request-Id": "ours"})
    assert answer["id"] == "cmpl-ours"


def test_salted_prompts_share_no_cache(server: HTTPServer) -> None:
    body = {"prompt": list(range(300, 400)), "max_tokens": 1}

    def cached(**more: object) -> int:
        return complete(server, **body, **more)["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert cached(cache_salt="a") == 0 and cached(cache_salt="a") > 0 and cached(cache_salt="b") == 0
