"""The programs of a run: collectors, a store of its own, loads, audiences; each ends with the run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import grpc

from benchmarks.collector_process import free_port

ROOT: Final = Path(__file__).resolve().parents[2]
READY_S: Final = 120.0


@contextmanager
def program(*command: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program; end it at the end."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[str]) -> None:
    """Ask it to end, then make it."""
    process.terminate()
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def collector(*arguments: str, port: int = 0) -> Iterator[tuple[str, int]]:
    """A collector; its address and process id."""
    address = f"127.0.0.1:{port or free_port()}"
    with program(sys.executable, "-m", "fulgurite.collector", "--listen", address, *arguments) as process:
        await_ready(address)
        yield address, process.pid


def start_collector(address: str, *arguments: str) -> subprocess.Popen[str]:
    """A collector at this address, when it answers."""
    process = start_module("fulgurite.collector", "--listen", address, *arguments)
    await_ready(address)
    return process


def await_ready(address: str) -> None:
    """Return when something speaks at `address`."""
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        grpc.channel_ready_future(channel).result(timeout=READY_S)


@contextmanager
def store(folder: Path, *, fsync: str = "everysec") -> Iterator[str]:
    """A Redis-compatible server that outlives collectors; its URL."""
    process = start_store(folder, fsync=fsync)
    try:
        yield url_of(folder)
    finally:
        end(process)


def url_of(folder: Path) -> str:
    """Where the store in a folder listens."""
    return f"unix://{folder / 's'}"


def start_store(folder: Path, *, fsync: str = "everysec") -> subprocess.Popen[str]:
    """A Redis-compatible server over the files in a folder, when it listens."""
    from fulgurite.collector.embedded import server_binary

    socket = folder / "s"
    socket.unlink(missing_ok=True)
    options = ["--port", "0", "--unixsocket", str(socket), "--dir", str(folder), "--save", ""]
    options += ["--appendonly", "yes", "--appendfsync", fsync, "--loglevel", "warning"]
    process = subprocess.Popen(
        [str(server_binary()), *options], cwd=ROOT, stdout=subprocess.DEVNULL, text=True
    )
    deadline_s = time.monotonic() + READY_S
    while not socket.exists():
        if time.monotonic() > deadline_s:
            end(process)
            raise TimeoutError("the store does not start")
        time.sleep(0.02)
    return process


def start_module(name: str, *arguments: object) -> subprocess.Popen[str]:
    """A module of the benchmarks as a process that prints one JSON object."""
    command = [sys.executable, "-m", name, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str], *, timeout_s: float) -> dict[str, Any]:
    """What it printed.

    Raises
    ------
    RuntimeError
        Where it failed.
    """
    try:
        out, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        end(process)
        raise
    if process.returncode:
        raise RuntimeError(f"{process.args!r} ended with status {process.returncode}")
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def run_load(address: str, *, seconds: float, **options: object) -> dict[str, Any]:
    """`python -m benchmarks.load`, to its end."""
    return result(start_load(address, seconds=seconds, **options), timeout_s=seconds + 90)


def start_load(address: str, *, seconds: float, **options: object) -> subprocess.Popen[str]:
    """`python -m benchmarks.load`, under way."""
    arguments: list[object] = ["--collector", address, "--seconds", seconds]
    for name, value in options.items():
        arguments += [f"--{name.replace('_', '-')}", value]
    return start_module("benchmarks.load", *arguments)
