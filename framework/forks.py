"""Processes that were started here are no business of a process that is forked from this one."""

from __future__ import annotations

import multiprocessing.process
import os
import weakref
from multiprocessing.process import BaseProcess

_OWN: weakref.WeakSet[BaseProcess] = weakref.WeakSet()


def keep_from_forks(process: BaseProcess) -> None:
    """multiprocessing forgets its processes in those that it forks itself; any other (``os.fork``) would end them as it exits."""
    _OWN.add(process)


def _forget() -> None:
    """Runs in the process that was forked."""
    children: set[BaseProcess] = getattr(multiprocessing.process, "_children", set())
    children.difference_update(_OWN)


os.register_at_fork(after_in_child=_forget)
