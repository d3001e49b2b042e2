"""The engine's loop in a process of its own, and the messages it takes and gives."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Literal, cast

from .clock import WallClock
from .config import EngineConfig
from .engine.prompts import EngineInput
from .executor.kinds import EXECUTORS
from .failures import Failure
from .lora_request import LoRARequest
from .pooling_params import PoolingParams
from .sampling_params import SamplingParams

if TYPE_CHECKING:
    from .engine.engine import Engine
    from .engine.executor import HasRanks
    from .engine.metrics import EngineInfo, EngineStats
    from .outputs import RequestOutput

SHORT_WAITS = {"GOMP_SPINCOUNT": "1000"}
"""Environment of a process that computes beside others: threads of a CPU kernel that wait for one another go to sleep after a short
spin. OpenMP's default is a long one, with which one busy neighbour on the machine makes steps many times as long."""

ALIVE_S = 1.0
"""A process that steps, or reads adapters, sends something at least as often, if nothing else then no outputs: a sign of life."""

WAIT_S = 0.002
"""Between two looks whether the grammar is compiled that all requests wait for."""

Method = Literal["report", "metrics", "reset_prefix_cache", "add_lora", "remove_lora", "pin_lora", "list_loras"]
"""What may be asked of an engine elsewhere."""

Loads = dict[str, Callable[[], bool]]
"""Key of a call of ``add_lora`` -> what tells whether it is done."""

Envelope = tuple[str, bytes]
"""What goes to the engine: key of the request or call, and a pickled Add, Abort or Call. The key stands outside, so that somebody
is told even of a message that cannot be read. Instead of an envelope, None ends the process."""


@dataclass
class Add:
    """A request to be served; its outputs carry the envelope's key as their request id. asked_s: when, by ``time.time``, which
    alone two processes have in common."""

    prompt: EngineInput
    params: SamplingParams | PoolingParams
    priority: int
    asked_s: float
    lora_request: LoRARequest | None = None


@dataclass
class Abort:
    """Ends the request, if it is running."""


@dataclass
class Call:
    """Asks for an Answer."""

    method: Method
    arguments: tuple[Any, ...] = ()


@dataclass
class Report:
    """Answer to ``report``: the kernel plan as it ran, and the engine's statistics."""

    plan: dict[str, dict[str, Any]]
    stats: EngineStats


@dataclass
class Ready:
    """The model is loaded."""

    info: EngineInfo


@dataclass
class Answer:
    """Of a Call."""

    key: str
    value: Any


def run_engine(config: EngineConfig, pipe: Connection) -> None:
    """Main function of the process: builds the engine, then steps while there is work and listens in between."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to end
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        from .build import build_engine, freeze_garbage

        engine = build_engine(config)
        freeze_garbage()
    except Exception as error:
        pipe.send(Failure.of(error))
        return
    try:
        pipe.send(Ready(engine.info()))
        _serve(engine, pipe)
    except (EOFError, ConnectionError):
        pass  # the parent is gone
    except Exception as error:
        pipe.send(Failure.of(error))
    finally:
        engine.shutdown()


def _end_with_parent() -> None:
    """Runs in a thread: loading takes minutes and a step may hang, but nobody is left to be served."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _serve(engine: Engine, pipe: Connection) -> None:
    sent_s = time.monotonic()
    has_ranks = EXECUTORS[engine.config.executor.kind].has_workers
    loads: Loads = {}
    while True:
        while not engine.has_unfinished() or pipe.poll(WAIT_S if engine.is_waiting else 0):
            if loads and not pipe.poll(WAIT_S):
                _answer(pipe, loads)
                if time.monotonic() - sent_s > ALIVE_S:
                    _send(pipe, [])
                    sent_s = time.monotonic()
                continue
            if has_ranks and not engine.has_unfinished():
                cast("HasRanks", engine.executor).wait_idle(pipe)
            envelope: Envelope | None = pipe.recv()
            if envelope is None:
                return
            _handle(engine, pipe, loads, *envelope)
        _answer(pipe, loads)
        outputs = engine.step()
        if engine.errored is not None:
            raise engine.errored
        if outputs or time.monotonic() - sent_s > ALIVE_S:
            _send(pipe, outputs)
            sent_s = time.monotonic()


def _answer(pipe: Connection, loads: Loads) -> None:
    """Tells of adapters that have been read."""
    for key, is_done in list(loads.items()):
        try:
            if not is_done():
                continue
            pipe.send(Answer(key, True))
        except ConnectionError:
            raise
        except Exception as error:
            pipe.send(Failure.of(error, key))
        del loads[key]


def _handle(engine: Engine, pipe: Connection, loads: Loads, key: str, pickled: bytes) -> None:
    """Whatever one message brings concerns nobody but its sender."""
    try:
        message = pickle.loads(pickled)
        if isinstance(message, Add):
            under_way_s = max(0.0, time.time() - message.asked_s) if isinstance(engine.clock, WallClock) else 0.0
            arrival_s = engine.clock.now() - under_way_s
            engine.add_request(
                key,
                message.prompt,
                message.params,
                arrival_s=arrival_s,
                priority=message.priority,
                lora_request=message.lora_request,
            )
        elif isinstance(message, Abort):
            if outputs := engine.abort([key]):
                _send(pipe, outputs)
        elif isinstance(message, Call):
            if message.method == "add_lora":
                loads[key] = engine.start_lora(*message.arguments)
            else:
                pipe.send(Answer(key, _CALLS[message.method](engine, *message.arguments)))
        else:
            raise TypeError(f"the engine's process takes Add, Abort and Call, not {type(message).__name__}")
    except ConnectionError:
        raise
    except Exception as error:
        pipe.send(Failure.of(error, key))


def _send(pipe: Connection, outputs: list[RequestOutput]) -> None:
    """Without the prompts, which the other side knows: a step would carry all of them."""
    for output in outputs:
        output.prompt, output.prompt_token_ids = None, []
    pipe.send(outputs)


_CALLS: dict[str, Callable[..., Any]] = {
    "report": lambda engine: Report(engine.plan_report(), engine.stats()),
    "metrics": lambda engine: engine.metrics(),
    "reset_prefix_cache": lambda engine: engine.reset_prefix_cache(),
    "remove_lora": lambda engine, lora_id: engine.remove_lora(lora_id),
    "pin_lora": lambda engine, lora_id: engine.pin_lora(lora_id),
    "list_loras": lambda engine: engine.list_loras(),
}
