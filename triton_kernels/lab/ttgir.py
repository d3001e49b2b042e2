"""What Triton's IR of tiles (TTGIR, the last one that knows them) says: a loop's loads, buffers, waits and products, and how
wide loads are."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property

_OP = re.compile(r"\s*(?:(%[\w.]+)(?::\d+)? = )?\"?([a-z_]\w*\.[\w.]+)\"?(.*)")
_NAME = re.compile(r"%[\w.]+")
_TILE = re.compile(r"<((?:\d+x)+)(?:!tt\.ptr<)?([a-z]+\d\w*)")
_POINTER = re.compile(r"!tt\.ptr<([a-z]+\d\w*)")
_LOOPS = ("scf.for", "scf.while")
_TO_REGISTERS = ("tt.load", "amdg.buffer_load", "amdgpu.buffer_load")
_TO_SHARED = ("ttg.async_copy_global_to_local", "amdg.buffer_load_to_local", "amdgpu.buffer_load_to_local")
_BY_TMA = ("ttng.async_tma_copy_global_to_local", "ttng.async_tma_gather")
_PRODUCTS = ("tt.dot", "tt.dot_scaled", "ttng.warp_group_dot", "ttng.tc_gen5_mma", "ttng.tc_gen5_mma_scaled")
_SAME = (
    "ttg.memdesc_index",
    "ttg.memdesc_subview",
    "ttg.memdesc_reshape",
    "ttg.memdesc_trans",
    "ttg.convert_layout",
    "amdg.in_thread_transpose",
    "amdgpu.in_thread_transpose",
)
"""Views of memory, and the same tile in other registers."""
_SMALL = 1 / 8
"""A load of less than this share of the loop's largest is none of its tiles: page numbers, scales, masks."""


@dataclass(frozen=True)
class Op:
    """One operation: its (first) result, the names that its line mentions ahead of the types, and the types."""

    result: str
    name: str
    names: tuple[str, ...]
    text: str
    types: str

    @cached_property
    def bytes(self) -> int:
        """What a load brings: of a tile, or of one number."""
        tiles, numbers = _TILE.findall(self.types), _POINTER.findall(self.types)
        shape, dtype = tiles[-1] if tiles else ("", numbers[-1])
        return math.prod(_sizes(shape)) * _bits(dtype) // 8

    @cached_property
    def flops(self) -> int:
        """What a product of tiles [..., m, k] and [..., k, n] computes."""
        (left, _), (right, _) = _TILE.findall(self.types)[:2]
        return 2 * math.prod(_sizes(left)) * _sizes(right)[-1]

    @property
    def format(self) -> str:
        """Number format of a product's first factor, e.g. "bf16"."""
        return str(_TILE.findall(self.types)[0][1])


def _sizes(shape: str) -> list[int]:
    return [int(size) for size in shape.split("x") if size]


def _bits(dtype: str) -> int:
    digits = re.search(r"\d+", dtype)
    assert digits is not None, dtype
    return int(digits[0])  # bf16, i32, f8E4M3FN


@dataclass(frozen=True)
class Loop:
    """An innermost loop that loads from memory or multiplies tiles. ``before``: what stands ahead of it in the kernel, other
    such loops left out; ``starts``: what its variables start with; ``header``: its first line."""

    ops: list[Op]
    before: list[Op]
    starts: dict[str, str]
    header: str = ""

    @property
    def products(self) -> list[Op]:
        return [op for op in self.ops if op.name in _PRODUCTS]

    @property
    def loads(self) -> list[Op]:
        return [op for op in self.ops if op.name in (*_TO_REGISTERS, *_TO_SHARED, *_BY_TMA)]

    @property
    def tiles(self) -> list[Op]:
        """The loads that are not small."""
        largest = max((op.bytes for op in self.loads), default=0)
        return [op for op in self.loads if op.bytes >= _SMALL * largest]

    @property
    def buffers(self) -> int:
        """How many of a tile lie in shared memory at once, of the tile with the fewest; 0 for one that goes to registers only."""
        stored = {self._root(op.names[0]): op.names[-1] for op in self.ops if op.name == "ttg.local_store"}
        memory = [stored.get(op.result, "") if op.name in _TO_REGISTERS else _destination(op) for op in self.tiles]
        return min((self._copies(name) if name else 0 for name in memory), default=0)

    @property
    def wait(self) -> int | None:
        """How many loads are under way behind the one that is waited for, at the wait with the fewest; None where the loop waits
        for no load: all go to registers."""
        waits = [int(found[1]) for op in self.ops if op.name == "ttg.async_wait" and (found := re.search(r"num = (\d+)", op.text))]
        return min([*waits, *self._waits_of_tma()], default=None)

    def _waits_of_tma(self) -> list[int]:
        """A barrier counts the copies that signal it; what was sent off so far less what was waited for is still under way."""
        copies = [op for op in self.ops if op.name in _BY_TMA]
        signals = [self._root(_barrier(op)) for op in copies]
        under_way = 0
        for op in self.before:
            if op.name in _BY_TMA and self._root(_barrier(op)) in signals:
                under_way += 1
            elif op.name == "ttng.wait_barrier" and self._root(op.names[0]) in signals:
                under_way -= signals.count(self._root(op.names[0]))
        found = []
        for op in self.ops:
            if op in copies:
                under_way += 1
            elif op.name == "ttng.wait_barrier" and (num := signals.count(self._root(op.names[0]))):
                under_way -= num
                found.append(under_way)
        return found

    def _copies(self, memory: str) -> int:
        op = self._definitions.get(self._root(memory))
        shapes = _TILE.findall(op.types) if op is not None else []
        return _sizes(shapes[-1][0])[0] if shapes else 1

    def _root(self, name: str) -> str:
        """The allocation behind a view of memory, the load behind a rearranged tile, or what a loop variable starts with."""
        while True:
            op = self._definitions.get(name)
            if op is not None and op.name in _SAME:
                name = op.names[0]
            elif name in self.starts:
                name = self.starts[name]
            else:
                return name

    @cached_property
    def _definitions(self) -> dict[str, Op]:
        return {op.result: op for op in (*self.before, *self.ops) if op.result}


def _destination(op: Op) -> str:
    """async_copy: pointers, memory, ...; tma: descriptor[coordinates] memory, barrier, predicate."""
    return op.names[1] if op.name in _TO_SHARED else op.names[-3]


def _barrier(op: Op) -> str:
    return op.names[-2]


def main_loops(text: str) -> list[Loop]:
    """The innermost loops that load from memory or multiply tiles, in the order of the program."""
    found: list[Loop] = []
    ops: list[Op] = []  # those outside of the loops found
    # Regions that are open: whose, where in ``ops`` they begin, starts of variables, first line.
    regions: list[tuple[str, int, dict[str, str], str]] = []
    for line in text.splitlines():
        line = line.rstrip()
        line = line.partition(" loc(")[0].rstrip() if line.endswith(")") else line
        closes, opens = line.lstrip().startswith("}"), line.endswith("{")
        if closes and not opens and regions:
            name, start, starts, header = regions.pop()
            body = ops[start:]
            loop = Loop(body, ops[:start], starts, header)
            if name in _LOOPS and (loop.loads or loop.products):
                found.append(loop)
                del ops[start:]
                regions = [("", begin, {}, "") for _, begin, _, _ in regions]  # what is around it is no innermost loop
        elif not closes:
            op = _parse(line)
            if opens:
                starts = dict(re.findall(r"(%[\w.]+) = (%[\w.]+)", line.partition("iter_args")[2]))
                regions.append((op.name if op is not None else "", len(ops), starts, line))
            elif op is not None:
                ops.append(op)
    return found


def _parse(line: str) -> Op | None:
    match = _OP.match(line)
    if match is None:
        return None
    result, name, rest = match.groups()
    text, _, types = rest.rpartition(" : ")
    return Op(result or "", name, tuple(_NAME.findall(text)), text, types)


def load_widths(text: str) -> dict[str, int]:
    """Kernel argument -> bytes in a row that one load brings to a thread, at its narrowest load of a tile. Loads whose layout is
    not a plain one of blocks are left out."""
    layouts = dict(re.findall(r"^(#\w+) = .*sizePerThread = \[([\d, ]+)\]", text, re.M))
    signature = next((line for line in text.splitlines() if " tt.func public " in line), "")
    arguments = set(re.findall(r"(%[\w.]+): !tt\.ptr", signature))
    sources: dict[str, str] = {}  # of what was computed so far: the pointer that it came from
    widths: dict[str, int] = {}
    for op in filter(None, map(_parse, text.splitlines())):
        source = sources.get(op.names[0], op.names[0]) if op.names else ""
        if op.name in ("tt.addptr", "tt.splat", "tt.broadcast", "tt.expand_dims", "ttg.convert_layout"):
            sources[op.result] = source
        elif op.name in (*_TO_REGISTERS, *_TO_SHARED) and source in arguments:
            tile = re.search(r"x(?:!tt\.ptr<)?([a-z]+\d\w*)>?, (#\w+)>", op.types)
            if tile and tile[2] in layouts:
                width = max(map(int, layouts[tile[2]].split(","))) * _bits(tile[1]) // 8
                widths[source[1:]] = min(width, widths.get(source[1:], width))
    return widths
