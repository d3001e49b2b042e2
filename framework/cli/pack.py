"""``kernelswap kernels pack``: compiles ahead of time what an engine runs on a GPU, so that its start there compiles nothing.

``python -m framework.cli.pack CONFIG TARGET`` is the child process that compiles; it prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .child import run_module

MANIFEST = "pack.json"


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    text = "compile an engine's kernels for a GPU that need not be here, into a folder that serves as Triton's cache there"
    parser = commands.add_parser("pack", help=text, description=text)
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="the engine as for experiments/serve.py: model=llama-3-8b model.load_format=dummy ...",
    )
    parser.add_argument("--target", default="sm_90", help="architecture, e.g. sm_80, sm_90, gfx942 (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the pack; what is in there already is kept")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Writes the pack, then proves it: a second process that meets other batch sizes must find every kernel in it."""
    from triton_kernels.devices import TARGETS
    from triton_kernels.tuning import triton_version

    from ..study.compose import CONFIG_FILE, compose, save_config

    if arguments.target not in TARGETS:
        raise ValueError(f"cannot compile for {arguments.target!r}; the targets are {', '.join(TARGETS)}")
    config = compose(arguments.overrides, Path(__file__).resolve().parents[2] / "conf")
    folder = arguments.output.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config, folder / CONFIG_FILE)
    packed = compile_into(folder, folder / CONFIG_FILE, arguments.target)
    proof = compile_into(folder, folder / CONFIG_FILE, arguments.target, probe=True)
    manifest = {
        "target": arguments.target,
        "triton": triton_version(),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "overrides": arguments.overrides,
        "kernels": sorted(set(packed["compiled"] + packed["loaded"])),
        "num_compiled_by_a_second_start": len(proof["compiled"]),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    num_compiled, num_found = len(packed["compiled"]), len(packed["loaded"])
    print(
        f"{num_compiled + num_found} variants of {len(manifest['kernels'])} kernels for {arguments.target}, "
        f"{num_compiled} compiled now"
    )
    print(f"a second start with other batch sizes compiled {len(proof['compiled'])} and found {len(proof['loaded'])}")
    print(f"on the GPU, with Triton {manifest['triton']} of Python {manifest['python']}: TRITON_CACHE_DIR={folder}")
    for name in sorted(set(proof["compiled"])):
        print(f"not in the pack: a variant of {name} (its arguments specialize on batch sizes)", file=sys.stderr)
    return 1 if proof["compiled"] else 0


def compile_into(folder: Path, config: Path, target: str, probe: bool = False) -> dict[str, Any]:
    """Runs the child with ``folder`` as Triton's cache: names of the kernels it ``compiled``, and of those it ``loaded``."""
    words = [str(config), target, *(["--probe"] if probe else [])]
    done = run_module("framework.cli.pack", words, environment={"TRITON_CACHE_DIR": str(folder)}, capture_output=True)
    if done.returncode != 0:
        raise ValueError(f"packing for {target} stopped: {done.stderr.strip()[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> None:
    """The child process."""
    from triton_kernels.compile_counter import CompileCounter
    from triton_kernels.lab.aot import compile_only

    from ..settling import settle_block_size, settle_quantization
    from ..study.compose import ServeConfig, load_config
    from ..worker.dry_run import dry_run

    parser = argparse.ArgumentParser(prog="python -m framework.cli.pack")
    parser.add_argument("config", type=Path)
    parser.add_argument("target")
    parser.add_argument("--probe", action="store_true")
    arguments = parser.parse_args(argv)
    config = settle_quantization(settle_block_size(load_config(arguments.config, ServeConfig).engine(), arguments.target))
    with CompileCounter() as counter, compile_only(arguments.target):
        num_steps = dry_run(config, arguments.target, arguments.probe)
    print(json.dumps({"compiled": counter.compiled, "loaded": counter.loaded, "num_steps": num_steps}))


if __name__ == "__main__":
    main()
