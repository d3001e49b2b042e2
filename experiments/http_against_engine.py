"""What HTTP costs: the same streams from a server and from AsyncEngine, in turn, on this machine.

    python experiments/http_against_engine.py experiments/serving_results/http_tiny.csv --model tiny --streams 256
    python experiments/http_against_engine.py experiments/serving_results/http_llama-100m.csv --model FOLDER --streams 64

Each round asks one and then the other for all streams at once: prompts of random tokens, greedy, as many output tokens each. One
process reads them all, so that its time is taken from the same processors. The machine should do nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import aiohttp

from framework import AsyncEngine, RequestOutputKind, SamplingParams
from framework.engine_args import engine_config
from framework.engine_process import SHORT_WAITS
from framework.study.results import format_table, write_csv

PROMPT_TOKENS = 32
START_TIMEOUT_S = 300.0
Ask = Callable[[list[int]], Awaitable[int]]


def cpu_s(pid: int) -> float:
    """User's and system's time of a process, with all its threads and without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(ask: Ask, prompts: list[list[int]], server_pid: int | None) -> dict[str, float]:
    """All prompts at once. Microseconds are of the reader's, and the server's, processor time per token."""
    begun, reader_s, server_s = time.perf_counter(), time.process_time(), cpu_s(server_pid) if server_pid else 0.0
    num_tokens = sum(await asyncio.gather(*map(ask, prompts)))
    took = time.perf_counter() - begun
    return {
        "tokens": num_tokens,
        "tokens_per_s": num_tokens / took,
        "reader_us": 1e6 * (time.process_time() - reader_s) / num_tokens,
        "server_us": 1e6 * (cpu_s(server_pid) - server_s) / num_tokens if server_pid else 0.0,
    }


async def compare(arguments: argparse.Namespace, engine: AsyncEngine, server: subprocess.Popen[bytes]) -> list[dict[str, Any]]:
    """A row per round and way."""
    draw = random.Random(0)
    highest = engine.info.vocab_size
    prompts = [[draw.randrange(highest) for _ in range(PROMPT_TOKENS)] for _ in range(arguments.streams)]
    kind = RequestOutputKind.DELTA
    params = SamplingParams(temperature=0, max_tokens=arguments.tokens, ignore_eos=True, output_kind=kind)
    fields = {"temperature": 0, "max_tokens": arguments.tokens, "ignore_eos": True, "stream": True}

    async def over_engine(prompt: list[int]) -> int:
        return sum([len(output.outputs[0].token_ids) async for output in engine.generate(prompt, params)])

    timeout, headers = aiohttp.ClientTimeout(total=None), {"Content-Type": "application/json"}
    url, connector, rows = f"http://127.0.0.1:{arguments.port}", aiohttp.TCPConnector(limit=0), []
    async with aiohttp.ClientSession(url, connector=connector, timeout=timeout, headers=headers) as session:

        async def over_http(prompt: list[int]) -> int:
            """A chunk is a token."""
            async with session.post("/v1/completions", data=json.dumps({**fields, "prompt": prompt})) as response:
                response.raise_for_status()
                content = await response.content.read()
            return content.count(b"data: {")

        await answers(session, server)
        for number in range(-1, arguments.rounds):  # the first, number -1, warms up
            prompts = [prompt[1:] + prompt[:1] for prompt in prompts]  # others for the prefix cache
            for way, ask, pid in (("engine", over_engine, None), ("http", over_http, server.pid)):
                found = await measure(ask, prompts, pid)
                if number >= 0:
                    rows.append({"round": number, "way": way, **{name: round(value, 2) for name, value in found.items()}})
    return rows


async def answers(session: aiohttp.ClientSession, server: subprocess.Popen[bytes]) -> None:
    """Waits until the server does."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            async with session.get("/health") as response:
                if response.status == 200:
                    return
        except aiohttp.ClientError:
            await asyncio.sleep(0.2)
    raise RuntimeError("the server did not start; its output says why")


def main(given: Sequence[str] | None = None) -> None:
    """Writes the rows, and prints their medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="CSV file of the rows")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--port", type=int, default=8765)
    arguments = parser.parse_args(given)
    for name, value in SHORT_WAITS.items():
        os.environ.setdefault(name, value)
    command = ["serve", arguments.model, "--device", "cpu", "--host", "127.0.0.1", "--port", str(arguments.port)]
    server = subprocess.Popen([sys.executable, "-m", "framework.cli", *command, "--log-level", "warning"])
    engine = AsyncEngine(engine_config(arguments.model, device="cpu"))
    try:
        rows = asyncio.run(compare(arguments, engine, server))
    finally:
        engine.shutdown()
        server.terminate()
        server.wait()
    write_csv(arguments.table, rows)
    columns = ("tokens_per_s", "reader_us", "server_us")
    ways = {way: [median(row[column] for row in rows if row["way"] == way) for column in columns] for way in ("engine", "http")}
    print(format_table([["way", *columns], *([way, *(f"{value:.4g}" for value in values)] for way, values in ways.items())]))
    pairs = zip(*(sorted((r for r in rows if r["way"] == way), key=lambda row: row["round"]) for way in ("http", "engine")))
    ratios = [http["tokens_per_s"] / direct["tokens_per_s"] for http, direct in pairs]
    print(f"http / engine, tokens per second: median {median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    main()
