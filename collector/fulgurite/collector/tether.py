"""A program that becomes another and ends with the process that started it, however that ended.

``python tether.py PARENT_PID COMMAND…``. On Linux the kernel sees to it, and nothing of this program is left
running; elsewhere it stays and watches. It is a program, and not a `preexec_fn`, because that would run
between fork and exec in a process with threads. It imports the standard library alone: it is run by its path.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time

PR_SET_PDEATHSIG = 1
LOOK_INTERVAL_S = 0.5


def become(parent_pid: int, command: list[str]) -> None:
    """Be `command`, until it ends or the parent does. Returns only where the kernel cannot watch."""
    platform: str = sys.platform  # a variable: what is not for this platform is checked all the same
    if platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent_pid:  # it ended before the line above took hold
            sys.exit(1)
        os.execv(command[0], command)
    process = subprocess.Popen(command)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    while process.poll() is None and os.getppid() == parent_pid:
        time.sleep(LOOK_INTERVAL_S)
    process.terminate()
    sys.exit(process.wait())


if __name__ == "__main__":
    become(int(sys.argv[1]), sys.argv[2:])
