"""``kernelswap bench serve``: load on any OpenAI-compatible server, with the flags and the table of ``vllm bench serve``."""

from __future__ import annotations

import argparse
import datetime
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..study.load.table import LATENCIES
from ..study.metrics import PERCENTILES, SLOConfig
from ..study.workload import SamplingConfig, WorkloadConfig
from ..study.workload.prompts import SOURCES
from ..study.workload.traces import FORMATS
from . import bench_executor
from .flags import JSON

if TYPE_CHECKING:
    from ..study.compose import LoadConfig

BACKENDS = {"openai": "/v1/completions", "vllm": "/v1/completions", "openai-chat": "/v1/chat/completions"}
DATASETS = (*(name for name, source in SOURCES.items() if not source.needs_path), *FORMATS)
OBJECTIVES = {"ttft": "ttft_s", "tpot": "tpot_s", "e2el": "e2e_s"}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    text = "measure a server, or what it costs to hand steps to workers"
    commands = subparsers.add_parser("bench", help=text).add_subparsers(required=True, metavar="COMMAND")
    bench_executor.add_parser(commands)
    text = "ask a server for a workload over HTTP, at the times of the workload whatever the server does, and print what came when"
    parser = commands.add_parser("serve", help=text, description=text)
    add = parser.add_argument

    def with_default(name: str, default: Any, text: str, **given: Any) -> None:
        add(name, default=default, type=type(default), help=f"{text} (default: %(default)s)", **given)

    with_default("--backend", "openai", "which endpoint; vllm is the same as openai", choices=BACKENDS)
    add("--base-url", metavar="URL", help="of the server, in place of --host and --port")
    with_default("--host", "127.0.0.1", "of the server")
    with_default("--port", 8000, "of the server", metavar="N")
    add("--endpoint", metavar="PATH", help="in place of the backend's own")
    add("--model", help="whose vocabulary and tokenizer make the prompts (default: the one that the server names)")
    add("--served-model-name", metavar="NAME", help="what the server calls the model (default: the first of its /v1/models)")
    add("--tokenizer", help="in place of the model's")
    text = "what the prompts are; of a recorded one without a file, requests with its statistics"
    with_default("--dataset-name", "random", text, choices=DATASETS)
    add("--dataset-path", metavar="FILE", help="of a recorded dataset")
    with_default("--num-prompts", 1000, "how many requests", metavar="N")
    with_default("--request-rate", math.inf, "requests per second; inf: all at once", metavar="RPS")
    with_default("--burstiness", 1.0, "shape of the Gamma distribution of the gaps; 1: a Poisson process", metavar="X")
    add("--max-concurrency", type=int, metavar="N", help="requests under way at once; the time that others wait counts apart")
    with_default("--num-warmups", 0, "requests before those that are measured", metavar="N")
    with_default("--seed", 0, "of everything random", metavar="N")
    with_default("--random-input-len", 1024, "tokens of a prompt, of random and python", metavar="N")
    with_default("--random-output-len", 128, "tokens of an answer, where none is recorded", metavar="N")
    with_default("--random-range-ratio", 0.0, "lengths are uniform in LEN * [1 - X, 1 + X]", metavar="X")
    with_default("--random-prefix-len", 0, "tokens that all prompts begin with, on top", metavar="N")
    add("--ignore-eos", action="store_true", help="answers are as long as they may be")
    for name, value in vars(SamplingConfig()).items():
        with_default("--" + name.replace("_", "-"), value, "sampling parameter", metavar="X")
    add("--extra-body", **JSON, default={}, help="further fields of every request")
    add("--goodput", nargs="+", default=[], metavar="NAME:MS", help=f"objectives, of {', '.join(OBJECTIVES)}")
    with_default("--percentile-metrics", "ttft,tpot,itl", "latencies to print, of ttft, tpot, itl, e2el", metavar="NAME,...")
    with_default("--metric-percentiles", "99", "percentiles to print", metavar="P,...")
    with_default("--ready-check-timeout-sec", 0.0, "how long to wait for a server that does not answer yet", metavar="S")
    add("--disable-tqdm", action="store_true", help="no progress bar")
    add("--save-result", action="store_true", help="write a row for kernelswap collect, and requests.csv")
    add("--result-dir", type=Path, metavar="DIR", help="the row's folder (default: one in outputs/load named by the time)")
    with_default("--label", "http", "what the row calls the server")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measures and prints; 2 if the server served nothing: the row, where one is written, then has the reason."""
    from ..build import freeze_garbage, input_processor
    from ..models.read import read_model
    from ..study.load.run import load, served_model
    from ..study.load.table import format_failures, format_load
    from ..study.served import Served, attempt, first_columns

    latencies, percentiles = _latencies(arguments.percentile_metrics), _percentiles(arguments.metric_percentiles)
    config = _config(arguments)
    config.validate()
    if arguments.model is None:
        config.model.name = served_model(config.http)
    row, info = first_columns(config), read_model(config.model)
    tokenizer = input_processor(config.model, info).tokenizer
    freeze_garbage()
    every = sorted({*PERCENTILES, *percentiles})

    def measure() -> Served:
        return load(config, info.config["vocab_size"], tokenizer, every, progress=not arguments.disable_tqdm)

    folder = arguments.result_dir or Path("outputs/load") / f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"
    served = attempt(folder, row, measure) if arguments.save_result else measure()
    if served is None:
        return 2
    print(format_load(config, served.metrics(config, every), latencies, percentiles))
    if failures := format_failures(served.record.requests):
        print(failures)
    if arguments.save_result:
        print(f"{folder}: {', '.join(served.write(folder, config, row))}")
    return 0


def _config(arguments: argparse.Namespace) -> LoadConfig:
    from ..config import ModelConfig
    from ..study.compose import LoadConfig
    from ..study.load.config import HttpConfig

    made = arguments.dataset_name in SOURCES
    workload = WorkloadConfig(
        source=arguments.dataset_name if made else "trace",
        format="auto" if made else arguments.dataset_name,
        path=arguments.dataset_path,
        num_requests=arguments.num_prompts,
        seed=arguments.seed,
        prompt_tokens=arguments.random_input_len,
        prompt_spread=arguments.random_range_ratio,
        output_tokens=arguments.random_output_len,
        output_spread=arguments.random_range_ratio,
        shared_prefix_tokens=arguments.random_prefix_len,
        rate=arguments.request_rate,
        burstiness=arguments.burstiness,
        ignore_eos=arguments.ignore_eos,
        sampling=SamplingConfig(**{name: getattr(arguments, name) for name in vars(SamplingConfig())}),
    )
    http = HttpConfig(
        url=arguments.base_url or f"http://{arguments.host}:{arguments.port}",
        endpoint=arguments.endpoint or BACKENDS[arguments.backend],
        model=arguments.served_model_name,
        extra_body=arguments.extra_body,
        max_concurrency=arguments.max_concurrency,
        ready_timeout_s=arguments.ready_check_timeout_sec,
    )
    return LoadConfig(
        system=arguments.label,
        model=ModelConfig(arguments.model or "tiny", tokenizer=arguments.tokenizer),
        seed=arguments.seed,
        num_warmup_requests=arguments.num_warmups,
        workload=workload,
        slo=_objectives(arguments.goodput),
        http=http,
    )


def _objectives(given: list[str]) -> SLOConfig:
    found: dict[str, Any] = {}
    for text in given:
        name, _, milliseconds = text.partition(":")
        try:
            found[OBJECTIVES[name]] = float(milliseconds) / 1e3
        except (KeyError, ValueError) as error:
            raise ValueError(f"--goodput {text} is none of {', '.join(OBJECTIVES)} with milliseconds, such as ttft:200") from error
    return SLOConfig(**found)


def _latencies(text: str) -> list[str]:
    names = [name.replace("e2el", "e2e") for name in text.split(",")]
    if unknown := [name for name in names if name not in LATENCIES]:
        raise ValueError(f"--percentile-metrics {unknown[0]} is no latency; there are ttft, tpot, itl, e2el")
    beside = {"itl": ["chunk_gap"]}
    return [*(each for name in names for each in (name, *beside.get(name, []))), "client_queue"]


def _percentiles(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = [math.nan]
    if not all(0 <= value <= 100 for value in found):
        raise ValueError(f"--metric-percentiles {text} must be numbers from 0 to 100, such as 50,99")
    return found
