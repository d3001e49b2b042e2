"""Flags out of a signature: one per parameter of a function or field of a dataclass, with the help of its docstring; and keys of
those that take mappings as flags of their own."""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Argument:
    """What one flag sets. kind: its type, without None; text: from the docstring, where a line (with those below it that are
    indented further) reads ``name  text``."""

    name: str
    kind: Any
    default: Any
    text: str


def arguments_of(owner: Callable[..., Any]) -> list[Argument]:
    """Of a function or a dataclass, in order; those that only take what is left over are passed over."""
    hints, texts = get_type_hints(owner), _texts(inspect.getdoc(owner) or "")
    parameters = [p for p in inspect.signature(owner).parameters.values() if p.kind is not p.VAR_KEYWORD]
    return [Argument(p.name, _without_none(hints[p.name]), p.default, texts.get(p.name, "")) for p in parameters]


def add_flags(parser: argparse.ArgumentParser, title: str, owner: Callable[..., Any]) -> None:
    """A group of flags, which leave nothing behind unless they are given: booleans as --x and --no-x, mappings to text as KEY=VALUE
    (may be repeated), other mappings as JSON (likewise), sequences as one value or several (likewise)."""
    group = parser.add_argument_group(title)
    for argument in arguments_of(owner):
        flag, text = "--" + argument.name.replace("_", "-"), (argument.text + _shown(argument.default)).replace("%", "%%")
        group.add_argument(flag, help=text, default=argparse.SUPPRESS, **_reading(argument))


def given(namespace: argparse.Namespace, owner: Callable[..., Any]) -> dict[str, Any]:
    """What flags were given of the arguments of ``owner``."""
    names = {argument.name for argument in arguments_of(owner)}
    return {name: value for name, value in vars(namespace).items() if name in names}


class Parser(argparse.ArgumentParser):
    """Takes ``--name.key VALUE`` and ``--name.key=VALUE``, too, for every flag that takes a mapping; a key of a key follows another
    dot. A value is JSON, or text where it is none."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        return super().parse_known_args(list(self._undotted(sys.argv[1:] if args is None else args)), namespace)

    def _undotted(self, words: Sequence[str]) -> Iterator[str]:
        rest = iter(words)
        for word in rest:
            dotted = re.fullmatch(r"(--[\w-]+)\.([^=]+)(?:=(.*))?", word, re.DOTALL)
            action = self._option_string_actions.get(dotted[1]) if dotted else None
            if dotted is None or action is None:
                yield word
                continue
            flag, keys, value = dotted.groups()
            if not isinstance(action, _Gathered):
                self.error(f"argument {flag}.{keys}: {flag} takes no keys")
            if not all(keys.split(".")):
                self.error(f"argument {flag}.{keys}: a key is empty")
            if value is None and (value := next(rest, "--")).startswith("--"):
                self.error(f"argument {flag}.{keys}: expected one value")
            yield from (flag, action.value_of(keys, value))


def json_object(text: str) -> dict[str, Any]:
    """The type of a flag that takes one."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object")
    return value


def _reading(argument: Argument) -> dict[str, Any]:
    """How argparse reads it."""
    kind, inner = get_origin(argument.kind) or argument.kind, get_args(argument.kind)
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if issubclass(kind, Mapping):
        return PAIRS if inner[1] is str else JSON
    if issubclass(kind, Sequence) and kind is not str:
        return {"action": "extend", "nargs": "+", "type": inner[0], "metavar": argument.name.upper()}
    assert kind in (str, int, float), f"{argument.name}: no flag can give a {kind}"
    return {"type": kind, "metavar": argument.name.upper()}


def _without_none(hint: Any) -> Any:
    if get_origin(hint) not in (Union, UnionType):
        return hint
    return next(kind for kind in get_args(hint) if kind is not type(None))


def _texts(doc: str) -> dict[str, str]:
    texts: dict[str, str] = {}
    for name, text in re.findall(r"^(\w+) {2,}(\S.*(?:\n {5,}\S.*)*)", doc, re.MULTILINE):
        texts[name] = " ".join(text.split())
    return texts


def _shown(default: Any) -> str:
    """Nothing, where the text has to say what comes of it."""
    if isinstance(default, bool):
        return f" (default: {'on' if default else 'off'})"
    return f" (default: {default})" if isinstance(default, str | int | float) else ""


class _Gathered(argparse.Action):
    """Gathers in one dictionary what a repeated flag gives."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, value: Any, option: str | None = None) -> None:
        setattr(namespace, self.dest, _merged(getattr(namespace, self.dest, {}), value))

    @staticmethod
    def value_of(keys: str, value: str) -> str:
        """What gives the flag this value alone."""
        try:
            found = json.loads(value)
        except ValueError:
            found = value
        for key in reversed(keys.split(".")):
            found = {key: found}
        return json.dumps(found)


class _Pairs(_Gathered):
    """Of KEY=VALUE."""

    @staticmethod
    def value_of(keys: str, value: str) -> str:
        return f"{keys}={value}"


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """With the keys of both, in mappings below, too."""
    common = [key for key in old.keys() & new.keys() if isinstance(old[key], dict) and isinstance(new[key], dict)]
    return {**old, **new, **{key: _merged(old[key], new[key]) for key in common}}


def _pair(text: str) -> dict[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is no KEY=VALUE")
    return {key: value}


PAIRS: dict[str, Any] = {"action": _Pairs, "type": _pair, "metavar": "KEY=VALUE"}
JSON: dict[str, Any] = {"action": _Gathered, "type": json_object, "metavar": "JSON"}
