"""Did a change of structure change behaviour? ``python tests/compare_trees.py BEFORE AFTER [--renamed OLD=NEW ...]``

Runs the same things in two checkouts and compares what comes out: tokens and log-probabilities of ``tiny`` under several ways to
sample, the row of a serving run (what was measured aside), and what the command line prints. Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PROMPTS = ["def read(path):\n", "import os\nimport sys\n\n", "class Node:\n    def __init__(self", "for i in range(10):\n"] * 3
SAMPLING: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.9, "seed": 7, "top_p": 0.9, "top_k": 40, "min_p": 0.01},
    {"temperature": 0.7, "seed": 3, "n": 2, "repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.1},
    {"temperature": 0.0, "logprobs": 3, "prompt_logprobs": 2, "min_tokens": 5, "bad_words": ["return"], "stop": ["\n\n"]},
]
COMMANDS = (
    ["--help"],
    ["kernels", "list", "silu_and_mul"],
    ["kernels", "roofline", "linear"],
    ["collect", "notebooks/data/chunk_size_simulated", "--output", os.devnull],
)
MEASURED = ("metric.", "env.")


def observe() -> dict[str, Any]:
    """What the checkout on the import path does."""
    from framework import LLM, SamplingParams

    llm = LLM("tiny", max_num_seqs=8, num_gpu_blocks_override=200, max_num_batched_tokens=64, block_size=16)
    seen: dict[str, Any] = {}
    for number, sampling in enumerate(SAMPLING):
        outputs = llm.generate(PROMPTS, SamplingParams(max_tokens=40, **sampling), use_tqdm=False)
        seen[f"tokens.{number}"] = [
            [[c.token_ids, c.text, c.finish_reason, _rounded(c.logprobs)] for c in output.outputs]
            + [_rounded(output.prompt_logprobs)]
            for output in outputs
        ]
    return seen


def _rounded(entries: Any) -> Any:
    found = [{t: round(p.logprob, 5) for t, p in entry.items()} if entry else None for entry in entries or ()]
    return json.loads(json.dumps(found))


def run_tree(tree: Path) -> dict[str, Any]:
    """Tokens, a row and command lines of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "COLUMNS": "200"}
    script = Path(__file__).resolve()

    def output(*words: str) -> str:
        done = subprocess.run([sys.executable, *words], env=environment, cwd=tree, text=True, capture_output=True)
        return done.stdout if done.returncode == 0 else f"exit code {done.returncode}: {done.stderr[-2000:]}"

    # -P: the folder of this script holds packages of the same names.
    seen = json.loads(output("-P", str(script), "--observe").splitlines()[-1])
    with tempfile.TemporaryDirectory() as folder:
        output("experiments/serve.py", "workload.num_requests=8", "workload.rate=inf", f"hydra.run.dir={folder}")
        row = json.loads((Path(folder) / "run.json").read_text())
        seen |= {f"row.{key}": value for key, value in row.items() if not key.startswith(MEASURED)}
        seen |= {f"row.{key}": "present" for key in row if key.startswith("metric.")}
        columns = (Path(folder) / "requests.csv").read_text().splitlines()[0]
        seen["requests.csv"] = columns
    for words in COMMANDS:
        seen["kernelswap " + " ".join(words)] = output("-m", "framework.cli", *words)
    return seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trees", nargs="*", type=Path)
    parser.add_argument("--observe", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--renamed", action="append", default=[], metavar="OLD=NEW", help="of keys, origins and words in output")
    arguments = parser.parse_args()
    if arguments.observe:
        print(json.dumps(observe()))
        return 0
    before, after = (run_tree(tree.resolve()) for tree in arguments.trees)
    text = json.dumps(before)
    for pair in arguments.renamed:
        text = text.replace(*pair.split("="))
    before = json.loads(text)
    wrong = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    for key in wrong:
        print(f"{key}:\n  before {str(before.get(key))[:1500]}\n  after  {str(after.get(key))[:1500]}")
    print(f"{len(after)} observations, {len(wrong)} differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
