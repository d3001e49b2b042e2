"""``kernelswap serve``: every argument of LLM and every field of ServerConfig is a flag, and lands where it would without one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

import framework.server
from framework import EngineConfig
from framework.cli import main
from framework.cli.flags import Argument, arguments_of
from framework.engine_args import engine_config
from framework.server.config import ServerConfig

Served = Callable[..., tuple[EngineConfig, ServerConfig]]
CHANGE_NOTHING_ALONE = ("disable_log_stats", "enable_expert_parallel")
VALUES = {
    "quantization": "int8",
    "distributed_executor_backend": "mp",
    "attention_backend": "FLASHINFER",
    "log_level": "debug",
    "tool_call_parser": "hermes",
    "reasoning_parser": "qwen3",
    "kernels": {"sample": "torch", "linear": "torch@x:1"},
    "hf_overrides": {"rope_theta": 5e5, "a": {"b": [1]}},
    "pooler_config": {"pooling_type": "MEAN", "use_activation": False},
    "limit_mm_per_prompt": {"image": 2},
    "speculative_config": {"method": "ngram", "num_speculative_tokens": 3},
    "structured_outputs_config": {"backend": "xgrammar", "compile_timeout_s": 3.0},
    "diffusion_config": {"threshold": 0.5, "max_passes": 3},
    "lora_modules": {"sql": "some/adapter"},
    "lora_dir": ".",
}
"""Those that cannot be anything of their type."""
NEEDED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "enable_auto_tool_choice": ({"tool_call_parser": "hermes"}, ["--tool-call-parser", "hermes"]),
    "enable_runtime_lora": ({"lora_dir": "."}, ["--lora-dir", "."]),
    "lora_dir": ({"enable_runtime_lora": True}, ["--enable-runtime-lora"]),
}
"""What must be given, too, and how."""
REFUSED = {"tokenizer_mode", "trust_remote_code"}
"""Those that cannot be anything but their default."""


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    """The two configurations that a command line serves with."""
    runs: list[tuple[EngineConfig, ServerConfig]] = []
    monkeypatch.delenv("VLLM_ATTENTION_BACKEND", raising=False)
    monkeypatch.setattr(framework.server, "run", lambda *configs: runs.append(configs))

    def serve(*words: str) -> tuple[EngineConfig, ServerConfig]:
        assert main(["serve", *words]) == 0
        return runs.pop()

    return serve


def value_and_words(argument: Argument) -> tuple[Any, list[str]]:
    """A value that is not the default, and the words that give it."""
    flag = "--" + argument.name.replace("_", "-")
    if argument.kind is bool:
        return not argument.default, [flag.replace("--", "--no-", 1) if argument.default else flag]
    value = VALUES.get(argument.name)
    if argument.name in (
        "diffusion_config",
        "hf_overrides",
        "limit_mm_per_prompt",
        "pooler_config",
        "speculative_config",
        "structured_outputs_config",
    ):
        return value, [flag, json.dumps(value)]
    if isinstance(value, dict):
        return value, [word for key, choice in value.items() for word in (flag, f"{key}={choice}")]
    if value is None:
        value = {int: 7, float: 0.25, str: "some"}.get(argument.kind, ["one", "two"])
    return value, [flag, *(value if isinstance(value, list) else [str(value)])]


@pytest.mark.parametrize("argument", arguments_of(engine_config), ids=lambda argument: argument.name)
def test_every_argument_of_llm_is_a_flag(argument: Argument, served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    value, words = value_and_words(argument)
    if argument.name in REFUSED:
        assert main(["serve", *words]) == 2
        assert argument.name in capsys.readouterr().err
        return
    engine, server = served(*words)
    assert server == ServerConfig()
    assert engine == engine_config(**{argument.name: value})
    assert (engine != EngineConfig()) == (argument.name not in CHANGE_NOTHING_ALONE)


@pytest.mark.parametrize("argument", arguments_of(ServerConfig), ids=lambda argument: argument.name)
def test_every_field_of_the_server_is_a_flag(argument: Argument, served: Served) -> None:
    if not isinstance(argument.default, bool | int | float | str | None):
        argument = Argument(argument.name, argument.kind, [], argument.text)
    value, words = value_and_words(argument)
    needed, needed_words = NEEDED.get(argument.name, ({}, []))
    engine, server = served(*words, *needed_words)
    assert engine == EngineConfig()
    assert server == ServerConfig(**{argument.name: value, **needed}) != ServerConfig(**needed)


def test_every_flag_has_its_help_and_one_owner() -> None:
    arguments = [*arguments_of(engine_config), *arguments_of(ServerConfig)]
    assert not [argument.name for argument in arguments if not argument.text]
    assert len({argument.name for argument in arguments}) == len(arguments)


def test_help_tells_texts_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    for words in (
        "--chunked-prefill-size CHUNKED_PREFILL_SIZE longest part of a prompt in one step; not given: whatever",
        "--port PORT TCP port; 0 = any that is free (default: 8000)",
        "--enable-prefix-caching, --no-enable-prefix-caching reuse the blocks of equal prefixes; not given: where",
        "--kernels KEY=VALUE op -> implementation",
    ):
        assert words in printed


def test_the_model_is_a_word_or_a_flag(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert served("tiny-draft")[0] == served("--model", "tiny-draft")[0] == engine_config("tiny-draft")
    assert served("tiny-draft", "--model", "tiny-draft")[0].model.name == "tiny-draft"
    assert served()[0].model.name == "tiny"
    assert main(["serve", "tiny", "--model", "tiny-draft"]) == 2
    assert "MODEL=tiny and --model tiny-draft" in capsys.readouterr().err


@pytest.mark.parametrize(
    "backend", [["--structured-outputs-config.backend", "xgrammar"], ["--structured-outputs-config.backend=xgrammar"]]
)
def test_keys_of_a_mapping_are_flags(backend: list[str], served: Served) -> None:
    whole = ["--structured-outputs-config", '{"backend": "llguidance", "compile_timeout_s": 3.0}']
    expected = engine_config(structured_outputs_config={"backend": "xgrammar", "compile_timeout_s": 3.0})
    assert served(*whole, *backend)[0] == served("--structured-outputs-config.compile_timeout_s", "3.0", *backend)[0] == expected


def test_keys_of_keys_are_flags_and_values_are_json_or_text(served: Served) -> None:
    words = ["--hf-overrides", '{"rope_scaling": {"factor": 2.0}, "a": 1}', "--hf-overrides.rope_scaling.rope_type", "linear"]
    words += ["--hf-overrides.list=[1, 2]", "--hf-overrides.on", "true", "--hf-overrides.text", '"7"', "--hf-overrides.low", "-1"]
    made = {"rope_scaling": {"factor": 2.0, "rope_type": "linear"}, "a": 1, "list": [1, 2], "on": True, "text": "7", "low": -1}
    assert served(*words)[0] == engine_config(hf_overrides=made)
    assert served("--kernels.sample", "torch", "--kernels", "linear=torch")[0] == engine_config(
        kernels={"sample": "torch", "linear": "torch"}
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hf-overrides.a"], "argument --hf-overrides.a: expected one value"),
        (["--hf-overrides.a", "--port", "1"], "argument --hf-overrides.a: expected one value"),
        (["--hf-overrides.a..b", "1"], "a key is empty"),
        (["--port.a", "1"], "argument --port.a: --port takes no keys"),
        (["--unheard-of.a", "1"], "unrecognized arguments: --unheard-of.a"),
        (["--kernels", "sample"], "'sample' is no KEY=VALUE"),
        (["--hf-overrides", "{"], "'{' is no JSON"),
        (["--hf-overrides", "[1]"], "'[1]' is no JSON object"),
        (["--max-num-seqs", "many"], "invalid int value: 'many'"),
        (["--max-num-seq", "4"], "unrecognized arguments"),
    ],
)
def test_unreadable_flags_are_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["serve", *words])
    assert message in capsys.readouterr().err


@dataclass
class Example:
    """Fields of all kinds.

    plain    text over
             two lines, 50 % of it here
    several  more
    """

    plain: float | None = None
    several: list[int] = field(default_factory=list)


def test_arguments_are_read_from_hints_and_docstring() -> None:
    plain, several = arguments_of(Example)
    assert (plain.name, plain.kind, plain.default) == ("plain", float, None)
    assert plain.text == "text over two lines, 50 % of it here"
    assert (several.name, several.kind, several.text) == ("several", list[int], "more")
