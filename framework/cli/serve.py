"""``kernelswap serve MODEL``: an OpenAI-compatible server. Its flags are ``LLM``'s arguments and the fields of ``ServerConfig``."""

from __future__ import annotations

import argparse

from ..engine_args import engine_config
from ..server.config import ServerConfig
from .flags import add_flags, given


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    text = "serve a model to clients of the OpenAI API"
    parser = subparsers.add_parser("serve", help=text, description=text, allow_abbrev=False)
    parser.add_argument("positional_model", nargs="?", metavar="MODEL", help="a folder, a Hugging Face id, tiny or tiny-draft")
    add_flags(parser, "server", ServerConfig)
    add_flags(parser, "engine: the arguments of LLM", engine_config)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serves until it is told to end."""
    from ..server import run as serve

    engine, server = given(arguments, engine_config), ServerConfig(**given(arguments, ServerConfig))
    if (model := arguments.positional_model) is not None and engine.setdefault("model", model) != model:
        raise ValueError(f"MODEL={model} and --model {engine['model']} were given: leave one of them out")
    serve(engine_config(**engine), server)
    return 0
