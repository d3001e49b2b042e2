"""Completions of an encoder-decoder: what its encoder reads is the prompt."""

from __future__ import annotations

from framework import LLM, AsyncEngine, SamplingParams
from framework.server.config import ServerConfig

from .servers import engine_config, serving

T5 = {
    "model_type": "t5",
    "vocab_size": 2048,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "eos_token_id": 1,
}


def test_prompts_are_read_by_the_encoder() -> None:
    config = engine_config(name="t5", load_format="dummy", architecture=T5, tokenizer="tiny", dtype="float32")
    offline, engine = LLM(config), AsyncEngine(config)
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    texts = ["translate this", "and that, which is longer"]
    expected = [output.outputs[0].text for output in offline.generate(texts, params, use_tqdm=False)]
    assert expected[0] != expected[1]
    with serving(engine, ServerConfig(served_model_name=["t5"])) as server:
        asked = {"model": "t5", "temperature": 0, "max_tokens": 8, "ignore_eos": True}
        status, found = server.post("/v1/completions", prompt=texts, **asked)
        assert status == 200 and [choice["text"] for choice in found["choices"]] == expected
        ids = offline.get_tokenizer().encode(texts[0])
        status, found = server.post("/v1/completions", prompt=ids, **asked)
        assert status == 200 and found["choices"][0]["text"] == expected[0]
        assert found["usage"]["prompt_tokens"] == len(ids) + 1, "the decoder's first token is one of the prompt"
        chat = {"messages": [{"role": "user", "content": "a"}], **asked}
        status, found = server.post("/v1/chat/completions", **chat)
        assert status == 400 and "encoder_prompt" in found["error"]["message"]
    engine.shutdown()
