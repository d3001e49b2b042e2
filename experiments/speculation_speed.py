"""Time per output token at batch 1, greedy, with drafts and without: python experiments/speculation_speed.py [FILE.csv]

All settings serve the same held-out prompts in one process, prompt by prompt in turn, so that what the machine does in the meantime
meets all alike; a prompt is served once, so that suffix decoding knows none of them. Ratios are paired by prompt.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from framework.llm import LLM
from framework.outputs import RequestOutput
from framework.study.results import format_table, write_csv
from framework.study.statistics import mean_interval
from framework.study.workload import WorkloadConfig, WorkloadRequest, build_workload

NGRAM = {"method": "ngram", "prompt_lookup_min": 2, "prompt_lookup_max": 5, "prompt_lookup_match": "rightmost"}
SETTINGS: dict[str, dict[str, Any]] = {
    "none": {},
    **{f"ngram, {k}": {**NGRAM, "num_speculative_tokens": k} for k in (3, 7)},
    **{f"suffix, {k}": {"method": "suffix", "num_speculative_tokens": k} for k in (3, 7)},
    "draft_model, 3": {"method": "draft_model", "model": "tiny-draft", "num_speculative_tokens": 3},
    "mtp, 3": {"method": "mtp", "model": "tiny-mtp", "num_speculative_tokens": 3},
}
HELDOUT = WorkloadConfig("heldout", num_requests=20, prompt_tokens=256, prompt_spread=0, output_tokens=128, output_spread=0)
WARMUP = WorkloadConfig("python", num_requests=4, seed=1, prompt_tokens=256, prompt_spread=0, output_tokens=128, output_spread=0)


def serve(llm: LLM, request: WorkloadRequest) -> RequestOutput:
    """Alone."""
    (output,) = llm.generate([{"prompt_token_ids": request.prompt_token_ids}], request.sampling, use_tqdm=False)
    return output


def tpot_s(output: RequestOutput) -> float:
    """Seconds per token after the first."""
    assert output.metrics is not None
    times = output.metrics.token_times_s
    return (times[-1] - times[0]) / (len(times) - 1)


def measure() -> list[dict[str, Any]]:
    """A row per setting."""
    llms = {name: LLM("tiny", device="cpu", speculative_config=spec or None) for name, spec in SETTINGS.items()}
    tokenizer = llms["none"].get_tokenizer()
    requests, warmup = (build_workload(config, tokenizer.vocab_size, tokenizer.encode) for config in (HELDOUT, WARMUP))
    for llm in llms.values():
        for request in warmup:
            serve(llm, request)
    outputs: dict[str, list[RequestOutput]] = {name: [] for name in llms}
    for request in requests:
        for name, llm in llms.items():
            outputs[name].append(serve(llm, request))
    times = {name: np.array([tpot_s(output) for output in found]) for name, found in outputs.items()}
    rows = []
    for name, found in outputs.items():
        same = sum(ours.outputs[0].token_ids == plain.outputs[0].token_ids for ours, plain in zip(found, outputs["none"]))
        steps = [len(set(output.metrics.token_times_s)) for output in found if output.metrics is not None]
        logs = np.log(times["none"] / times[name])
        interval = mean_interval(logs)
        rows.append(
            {
                "setting": name,
                "tpot_mean_ms": round(1e3 * float(times[name].mean()), 4),
                "tokens_per_step": round(len(found) * HELDOUT.output_tokens / sum(steps), 3),
                "times_faster": round(math.exp(float(logs.mean())), 3),
                "low": round(math.exp(interval.low), 3),
                "high": round(math.exp(interval.high), 3),
                "equal_outputs": same,
            }
        )
    return rows


if __name__ == "__main__":
    rows = measure()
    print(format_table([list(rows[0]), *(list(map(str, row.values())) for row in rows)]))
    if sys.argv[1:]:
        write_csv(Path(sys.argv[1]), rows)
