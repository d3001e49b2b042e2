"""What went wrong in another process, as it is told of."""

from __future__ import annotations

import pickle
import signal
import traceback
from dataclasses import dataclass


@dataclass
class Failure:
    """An exception of one request, call or step (``key``), or of all that the process does (None). Not every exception survives
    pickling, and a plugin's class may be unknown to the other side: then the text stands for it."""

    key: str | int | None
    text: str
    pickled: bytes

    @classmethod
    def of(cls, error: BaseException, key: str | int | None = None, where: str = "the engine's process") -> Failure:
        if not isinstance(error, ValueError):  # those say all; of others the place matters
            error.add_note(f"In {where}:\n" + "".join(traceback.format_exception(error)))
        try:
            pickled = pickle.dumps(error)
        except Exception:
            pickled = b""
        return cls(key, traceback.format_exception_only(error)[0].strip(), pickled)

    def error(self) -> Exception:
        """The exception, or one with its text."""
        try:
            return pickle.loads(self.pickled)
        except Exception:
            return RuntimeError(self.text)


def exit_text(code: int | None) -> str:
    """How a process ended. code: as of ``multiprocessing.Process.exitcode``, once it has ended."""
    if code is None:  # where SIGCHLD is ignored, nobody is told
        return "an exit code that is not known"
    if code >= 0:
        return f"exit code {code}; its output says why"
    hint = ", as the system does when memory runs out" if code == -signal.SIGKILL else ""
    return f"exit code {code} (killed by {signal.Signals(-code).name}{hint})"
