"""How a server is asked: a plain dataclass, which is also the schema of conf/load.yaml's ``http``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ...config_checks import require

PROMPTS = ("tokens", "text")


@dataclass
class HttpConfig:
    """The server, and how it is asked. The key is that of OPENAI_API_KEY or VLLM_API_KEY in the environment, never part of a row.

    url              of the server, without a path
    endpoint         /v1/completions, or one that ends in chat/completions
    model            the name under which the server has the model; None = the first of its /v1/models
    prompts          tokens (ids: the very prompts that an engine in this process gets), or text. A chat takes text
    extensions       send what OpenAI's own API lacks: return_token_ids, ignore_eos, top_k, min_p, repetition_penalty, priority,
                     and a cache_salt of the run's own, without which the same prompts are prefixes that the server knows
    extra_body       fields of every request, over those of the workload
    max_concurrency  requests under way at once; others wait at the client, which counts apart. None = no limit
    timeout_s        a request that is not answered in full so long after it was sent has failed
    ready_timeout_s  how long to wait for a server that does not answer yet
    """

    url: str = "http://127.0.0.1:8000"
    endpoint: str = "/v1/completions"
    model: str | None = None
    prompts: str = "tokens"
    extensions: bool = True
    extra_body: dict[str, Any] = field(default_factory=dict)
    max_concurrency: int | None = None
    timeout_s: float = 3600.0
    ready_timeout_s: float = 0.0

    @property
    def is_chat(self) -> bool:
        """Whether prompts go as messages."""
        return self.endpoint.endswith("chat/completions")

    def validate(self) -> None:
        """Raises ValueError for values that cannot work, naming the key, the value and what is possible."""
        for works, key, expected in (
            (_is_address(self.url), "url", "http://HOST:PORT or https://..., without a user or a path"),
            (
                self.endpoint.startswith("/") and self.endpoint.endswith("completions"),
                "endpoint",
                "a path that ends in completions",
            ),
            (self.prompts in PROMPTS, "prompts", "one of " + ", ".join(PROMPTS)),
            (self.max_concurrency is None or self.max_concurrency > 0, "max_concurrency", "1 or more, or null"),
            (self.timeout_s > 0, "timeout_s", "more than 0"),
            (self.ready_timeout_s >= 0, "ready_timeout_s", "0 or more"),
            (self.extra_body.get("n", 1) == 1, "extra_body", "without n: a request has one completion"),
            (self.extra_body.get("stream", True) is True, "extra_body", "without stream: what is not streamed has no latencies"),
        ):
            require(works, f"http.{key}", getattr(self, key), expected)


def _is_address(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc and parts.path in ("", "/")
