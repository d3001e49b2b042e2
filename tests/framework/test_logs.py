"""What is said while an engine starts and serves, and what never is."""

from __future__ import annotations

import io
import logging
import re
import sys
from collections.abc import Iterator

import pytest

from framework import LLM, AsyncEngine, EngineConfig, SamplingParams
from framework.config import CacheConfig
from framework.logs import LOGGER, set_up_logging


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """As it was, afterwards."""
    handlers, level = LOGGER.handlers[:], LOGGER.level
    LOGGER.handlers.clear()
    yield LOGGER
    LOGGER.handlers[:] = handlers
    LOGGER.setLevel(level)


def test_one_line_per_phase_of_the_start(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "framework"):
        llm = LLM("tiny", dtype="float32", num_gpu_blocks_override=64, device="cpu", kernels={"sample": "torch"})
    weights, cache, *recordings, plan = caplog.messages
    size = llm.engine.executor.weight_bytes / 2**20
    assert re.fullmatch(rf"weights: {size:.1f} MiB of tiny in float32 on .*, in \d+\.\d s", weights)
    assert re.fullmatch(r"KV cache: 64 blocks of 16 tokens, \d+\.\d MiB, in \d+\.\d s", cache)
    assert all(re.fullmatch(r"recordings: \d+ decode steps of up to 256 rows, in \d+\.\d s", line) for line in recordings)
    assert len(recordings) == int(any(entry["recorded"] for entry in llm.plan().values()))
    assert plan.startswith("kernel plan: ") and "sample=torch" in plan and "paged_attention_decode=" in plan


def test_requests_are_told_at_debug_without_what_they_say(caplog: pytest.LogCaptureFixture) -> None:
    llm = LLM("tiny", num_gpu_blocks_override=64)
    with caplog.at_level("DEBUG", logger="framework"):
        [output] = llm.generate("a secret of mine", SamplingParams(max_tokens=4), use_tqdm=False)
    assert f"request 0: {len(output.prompt_token_ids)} prompt tokens, n=1" in caplog.messages
    said = " ".join(caplog.messages)
    assert "secret" not in said and (output.outputs[0].text.strip() or "secret") not in said
    assert str(output.prompt_token_ids)[1:-1] not in said


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("kind", "level", "shown"), [(Terminal, "INFO", True), (Terminal, "WARNING", False), (io.StringIO, "INFO", False)]
)
def test_weights_have_a_progress_bar_on_a_terminal(
    kind: type[io.StringIO], level: str, shown: bool, monkeypatch: pytest.MonkeyPatch, logger: logging.Logger
) -> None:
    stream = kind()
    monkeypatch.setattr(sys, "stderr", stream)
    logger.setLevel(level)
    LLM("tiny", num_gpu_blocks_override=64)
    assert ("Loading weights" in stream.getvalue()) == shown


def test_lines_go_to_stderr_once_from_the_level_on(capsys: pytest.CaptureFixture[str], logger: logging.Logger) -> None:
    for level in ("INFO", "warning", "trace", logging.WARNING):
        set_up_logging(level)
        logger.getChild("some.place").info("phase %s", level)
        logger.getChild("some.place").warning("careful %s", level)
    lines = capsys.readouterr().err.splitlines()
    said = [line.rpartition("framework.some.place: ")[2] for line in lines]
    assert said == ["phase INFO", "careful INFO", "careful warning", "phase trace", "careful trace", f"careful {logging.WARNING}"]
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO MainProcess framework.some.place: phase INFO$", lines[0])


def test_the_engines_process_logs_what_this_one_would(capfd: pytest.CaptureFixture[str], logger: logging.Logger) -> None:
    for level, expected in (("info", ["weights", "KV cache", "kernel plan"]), ("warning", [])):
        set_up_logging(level)
        AsyncEngine(EngineConfig(cache=CacheConfig(num_blocks=64), device="cpu")).shutdown()
        found = re.findall(r"INFO (\S+) framework\.\S+: ([\w ]+): ", capfd.readouterr().err)
        assert [phase for process, phase in found if process == "kernelswap-engine" and phase != "recordings"] == expected
        assert [phase for process, phase in found if process == "MainProcess"] == (["engine"] if expected else [])
