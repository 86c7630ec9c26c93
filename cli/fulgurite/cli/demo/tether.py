"""Runs a module as a program that ends when the process that started it ends, however that happened.

`python -P -m fulgurite.cli.demo.tether PARENT_PID MODULE ARGUMENTS…`

It is a program, and not a `preexec_fn`, which would run between fork and exec in a process with threads.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
import threading
import time

PR_SET_PDEATHSIG = 1
LOOK_INTERVAL_S = 0.5


def tie(parent_pid: int) -> None:
    """See to it that this process gets SIGTERM when `parent_pid`, which must be its parent, is no more."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    else:
        threading.Thread(target=_watch, args=(parent_pid,), daemon=True).start()
    if os.getppid() != parent_pid:  # it ended before the line above took hold
        sys.exit(0)


def _watch(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(LOOK_INTERVAL_S)
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Tie this process to its parent, then be the module."""
    parent_pid, module = int(sys.argv[1]), sys.argv[2]
    tie(parent_pid)
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
