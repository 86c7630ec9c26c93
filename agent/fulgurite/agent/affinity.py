"""Where the agent's own threads run, in a process that OpenMP bound to some processors.

``OMP_PROC_BIND`` and its like bind the first thread of a process too, and each thread that it starts inherits
that. An engine that binds its workers (vLLM on the CPU does, one logical processor of each core, and keeps
some free for all else) would so have our thread wait for, and take from, the very processors that the model
runs on, while others stand idle.
"""

from __future__ import annotations

import multiprocessing
import os
from typing import Final

_BINDS: Final = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")


def stand_aside() -> None:
    """Let the calling thread, and those that it starts, run where the process that started this one may, but
    not where OpenMP computes; nothing where OpenMP is not bound here, or was not narrowed from there.

    Also where that leaves a single processor, on which all else runs: on two of them, vLLM's rounds with 16
    requests took 6 % longer while the thread might run on both, and as long as ever with it on the other one
    (`docs/attach.md`). What the operator allows (``taskset``, a container's processors) holds: that process
    is under it too.
    """
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None or not hasattr(os, "sched_setaffinity"):
        return
    if not any(os.environ.get(name) for name in _BINDS):
        return
    try:
        ours, allowed = os.sched_getaffinity(0), os.sched_getaffinity(parent.pid)
        if ours < allowed:
            os.sched_setaffinity(0, allowed - ours)
    except OSError:  # the other process is gone, or these processors are: as it was, then
        return
