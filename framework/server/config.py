"""The configuration of the server: what is not the engine's."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from ..config_checks import check_types, require
from .parsing import REASONING_FORMATS, TOOL_FORMATS

LOG_LEVELS = ("critical", "error", "warning", "info", "debug", "trace")


@dataclass
class ServerConfig:
    """How the server is reached, what it answers, and what it bears.

    host                 address to listen on
    port                 TCP port; 0 = any that is free
    api_key              keys of which a request to /v1 must bring one; none = that of VLLM_API_KEY, else none is asked for
    served_model_name    names that requests may call the model by, the first is told in answers; none = the model's own
    chat_template        Jinja template, or a file with one, instead of the tokenizer's
    trust_request_chat_template  requests may bring a template of their own, which can take as long as it likes
    enable_auto_tool_choice  the model may call tools by itself (tool_choice=auto)
    tool_call_parser     how the model writes tool calls: hermes, llama3_json, qwen3_coder or qwen3_xml
    reasoning_parser     how the model marks its reasoning: deepseek_r1 or qwen3
    enable_prompt_tokens_details  usage tells how many prompt tokens came from the cache
    enable_force_include_usage    streams end with the usage, asked for or not
    return_tokens_as_token_ids    log-probabilities name tokens as token_id:N
    lora_modules         adapters that requests may name as models, NAME=FOLDER
    enable_runtime_lora  clients may load and unload adapters; whoever may send requests may
    lora_dir             folder below which the adapters of clients must lie
    max_num_queued_reqs  completions that may wait beyond the engine's max_num_seqs; more are refused with 503
    allowed_image_hosts  hosts from which images that clients name by http(s) URL are fetched; none = from nowhere
    max_num_images       most images per request
    max_image_bytes      longest image that is fetched
    image_timeout_s      longest time that it may take
    max_body_bytes       longest request body
    head_timeout_s       longest time that the head of a request may take to arrive
    body_timeout_s       longest time that a body may take to arrive
    send_timeout_s       longest time that a client may read nothing of an answer
    max_n                most completions per prompt
    max_num_prompts      most prompts per request
    max_num_stop         most stop strings per request
    max_stop_length      most characters of all stop strings of a request together
    max_num_bad_words    most bad words per request
    max_bad_words_length  most characters of all bad words of a request together
    drain_timeout_s      how long running requests may take to end after SIGTERM
    keep_alive_s         how long an idle connection is kept
    log_level            critical, error, warning, info, debug or trace
    """

    host: str = "0.0.0.0"
    port: int = 8000
    api_key: list[str] = field(default_factory=list)
    served_model_name: list[str] = field(default_factory=list)
    chat_template: str | None = None
    trust_request_chat_template: bool = False
    enable_auto_tool_choice: bool = False
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    enable_prompt_tokens_details: bool = False
    enable_force_include_usage: bool = False
    return_tokens_as_token_ids: bool = False
    lora_modules: dict[str, str] = field(default_factory=dict)
    enable_runtime_lora: bool = False
    lora_dir: str | None = None
    max_num_queued_reqs: int = 2048
    allowed_image_hosts: list[str] = field(default_factory=list)
    max_num_images: int = 32
    max_image_bytes: int = 20 * 2**20
    image_timeout_s: float = 10.0
    max_body_bytes: int = 8 * 2**20
    head_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    send_timeout_s: float = 60.0
    max_n: int = 128
    max_num_prompts: int = 1024
    max_num_stop: int = 64
    max_stop_length: int = 8192
    max_num_bad_words: int = 1024
    max_bad_words_length: int = 16384
    drain_timeout_s: float = 30.0
    keep_alive_s: float = 5.0
    log_level: str = "info"

    def validate(self) -> None:
        """Raises ValueError for values that cannot work, naming the field, the value and what is possible."""
        check_types(self)
        require(0 <= self.port < 2**16, "port", self.port, "from 0 to 65535")
        require(self.max_num_queued_reqs >= 0, "max_num_queued_reqs", self.max_num_queued_reqs, "0 or more")
        timeouts = ("head_timeout_s", "body_timeout_s", "send_timeout_s", "image_timeout_s")
        for name in (*timeouts, *(name for name in vars(self) if name.startswith("max_") and name != "max_num_queued_reqs")):
            require(getattr(self, name) > 0, name, getattr(self, name), "more than 0")
        for name in ("drain_timeout_s", "keep_alive_s"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        require(all(self.api_key), "api_key", "''", "keys that are not empty")
        for name, formats in (("tool_call_parser", TOOL_FORMATS), ("reasoning_parser", REASONING_FORMATS)):
            require(getattr(self, name) in (None, *formats), name, getattr(self, name), "one of " + ", ".join(formats))
        if self.enable_auto_tool_choice and self.tool_call_parser is None:
            raise ValueError("enable_auto_tool_choice=True cannot work without a tool_call_parser, which finds the calls")
        if self.enable_runtime_lora != (self.lora_dir is not None):
            raise ValueError(
                "enable_runtime_lora and lora_dir go together: clients may load adapters from below a folder; "
                f"found enable_runtime_lora={self.enable_runtime_lora}, lora_dir={self.lora_dir!r}"
            )
        expected = "the name of a folder that exists"
        require(self.lora_dir is None or Path(self.lora_dir).is_dir(), "lora_dir", self.lora_dir, expected)
        require(self.log_level in LOG_LEVELS, "log_level", self.log_level, "one of " + ", ".join(LOG_LEVELS))

    def api_keys(self) -> list[str]:
        """The keys given, or the environment's."""
        return self.api_key or [key for key in (os.environ.get("VLLM_API_KEY"),) if key]

    def load_chat_template(self) -> str | None:
        """The template, read from its file if that is what was given. Raises ValueError if it can be neither."""
        given = self.chat_template
        if given is None or "{" in given or "\n" in given:
            return given
        try:
            return Path(given).read_text()
        except OSError as error:
            raise ValueError(
                f"chat_template={given!r} cannot work: it has no {{ as templates do, and is no file that can be read: {error}"
            ) from error
