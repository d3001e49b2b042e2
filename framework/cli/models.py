"""``kernelswap models``: which types of models can be served, by what, and why others cannot."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..models.catalog import ServedType


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    text = "every model_type with what runs it and its tasks, from configurations alone"
    parser = subparsers.add_parser("models", help=text, description=text)
    parser.add_argument("--all", action="store_true", help="all types that transformers knows, not its causal language models only")
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument("--json", action="store_true", help="one list of objects")
    formats.add_argument("--markdown", action="store_true", help="the native types, as the README lists them")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the list, then how many there are of each path."""
    from ..models.catalog import served_types

    found = list(served_types(arguments.all))
    if arguments.json:
        print(json.dumps([asdict(each) for each in found], indent=1))
    elif arguments.markdown:
        print(markdown(each.model_type for each in found if each.path == "native"))
    else:
        print("\n".join(_line(each) for each in found))
        counts = Counter(each.path for each in found)
        print(f"\n{len(found)} types: " + ", ".join(f"{count} {path}" for path, count in counts.most_common()))
    return 0


def _line(each: ServedType) -> str:
    what = each.reason if each.path == "refused" else ", ".join(each.tasks)
    return f"{each.model_type:<28}  {each.path:<12}  {what}"


def markdown(native: Iterable[str]) -> str:
    """The native model types as a paragraph."""
    names = [f"`{name}`" for name in sorted(native)]
    return textwrap.fill(f"Native model types ({len(names)}): {', '.join(names)}.", 140, break_on_hyphens=False)
