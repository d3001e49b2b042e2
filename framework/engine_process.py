"""The engine's loop in a process of its own, and the messages it understands."""

from __future__ import annotations

import pickle
import signal
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from .config import EngineConfig
from .engine.inputs import EngineInput
from .sampling_params import SamplingParams

if TYPE_CHECKING:
    from .engine.engine import Engine
    from .outputs import RequestOutput


@dataclass
class Add:
    """A request to be served."""

    request_id: str
    prompt: EngineInput
    params: SamplingParams | None
    priority: int


@dataclass
class Abort:
    """A request nobody waits for."""

    request_id: str


@dataclass
class Report:
    """Asks for, and carries, the plan and the statistics."""

    content: dict[str, Any]


@dataclass
class Shutdown:
    """Ends the process."""


@dataclass
class Ready:
    """The model is loaded."""


@dataclass
class Failure:
    """An error of one request, or of the engine as a whole (request_id None)."""

    error: Exception
    request_id: str | None = None


def run_engine(config: EngineConfig, pipe: Connection) -> None:
    """Main function of the process: builds the engine, then steps while there is work and listens in between."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to end
    try:
        from .build import build_engine, freeze_garbage

        engine = build_engine(config)
        freeze_garbage()
    except Exception as error:
        pipe.send(Failure(_portable(error)))
        return
    pipe.send(Ready())
    try:
        _serve(engine, pipe)
    except (EOFError, BrokenPipeError):
        pass  # the parent is gone
    except Exception as error:
        pipe.send(Failure(_portable(error)))
    finally:
        engine.shutdown()


def _serve(engine: Engine, pipe: Connection) -> None:
    while True:
        while not engine.has_unfinished() or pipe.poll():
            message = pipe.recv()
            if isinstance(message, Shutdown):
                return
            _handle(engine, pipe, message)
        outputs = engine.step()
        if outputs:
            _send(pipe, outputs)


def _send(pipe: Connection, outputs: list[RequestOutput]) -> None:
    """Without the prompts, which the other side knows: a step would carry all of them."""
    for output in outputs:
        output.prompt, output.prompt_token_ids = None, []
    pipe.send(outputs)


def _handle(engine: Engine, pipe: Connection, message: Any) -> None:
    if isinstance(message, Add):
        try:
            engine.add_request(message.request_id, message.prompt, message.params, priority=message.priority)
        except ValueError as error:
            pipe.send(Failure(_portable(error), message.request_id))
    elif isinstance(message, Abort):
        aborted = engine.abort([message.request_id])
        if aborted:
            _send(pipe, aborted)
    else:
        assert isinstance(message, Report)
        pipe.send(Report({"plan": engine.plan_report(), "stats": asdict(engine.stats())}))


def _portable(error: Exception) -> Exception:
    """The error itself if it survives the pipe, else one with its text."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
