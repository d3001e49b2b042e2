"""The configuration of structured output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config_checks import require, section_of
from .backends.table import AUTO, BACKENDS


@dataclass
class StructuredOutputsConfig:
    """How grammars are compiled.

    backend            auto (by the kind of constraint: xgrammar for structural tags and EBNF, llguidance for the rest), llguidance,
                       or xgrammar
    disable_any_whitespace, disable_additional_properties  for all requests, as of StructuredOutputsParams
    compile_timeout_s  from a request's arrival; it is refused after that
    num_threads        that compile
    cache_bytes        of compiled grammars that are kept for later requests, about
    """

    backend: str = AUTO
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    compile_timeout_s: float = 30.0
    num_threads: int = 2
    cache_bytes: int = 1 << 29

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> StructuredOutputsConfig:
        """Of a mapping of its fields, with backends also by vLLM's names."""
        section = section_of(cls, "structured_outputs_config", given, "structured_outputs.")
        if section.backend == "guidance":
            section.backend = "llguidance"
        return section

    def validate(self) -> None:
        """Raises ValueError as ``EngineConfig.validate`` does."""
        key = "structured_outputs."
        require(self.backend in (AUTO, *BACKENDS), key + "backend", self.backend, "one of " + ", ".join((AUTO, *BACKENDS)))
        require(self.compile_timeout_s > 0, key + "compile_timeout_s", self.compile_timeout_s, "more than 0")
        require(self.num_threads > 0, key + "num_threads", self.num_threads, "a positive number")
        require(self.cache_bytes >= 0, key + "cache_bytes", self.cache_bytes, "0 (nothing is kept) or more")
