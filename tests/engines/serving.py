"""Real servers for the tests: the `vllm` command, a collector, and what was measured, read from the
collector.

Every process runs in a session of its own, says what it says into a file, and is gone at the end.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from fulgurite.cli.address import Address
from fulgurite.cli.client import Collector
from fulgurite.cli.errors import CommandError
from fulgurite.wire.codec import decode_batch, topology_from_pb
from fulgurite.wire.frame import Frame, RequestEvent
from fulgurite.wire.topology import Topology

UP_S, SETTLE_S = 240.0, 30.0
BIN = Path(sys.executable).parent


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Process:
    """A process and everything that it starts."""

    def __init__(self, log: Path, *command: str, env: Mapping[str, str]) -> None:
        self.log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, start_new_session=True
            )

    @property
    def said(self) -> str:
        """All that it said so far."""
        return self.log.read_text(errors="replace")

    @property
    def pid(self) -> int:
        """Of the process itself."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def family(self) -> list[psutil.Process]:
        """It and all that it started and that run."""
        try:
            first = psutil.Process(self.pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it and all that it started."""
        for one in self.family():
            try:
                one.send_signal(number)
            except psutil.NoSuchProcess:
                pass

    def stop(self) -> int | None:
        """End it, kindly at first; its status."""
        family = self.family()
        if self.is_alive:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                pass
        for one in family:
            try:
                one.kill()
            except psutil.NoSuchProcess:
                pass
        return self._process.wait(10)


def surroundings(**changes: str) -> dict[str, str]:
    """This process's environment without any setting of Fulgurite or OpenTelemetry, and `changes`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FULGURITE_", "OTEL_"))}
    return {**kept, "OMP_NUM_THREADS": "1", **changes}


class Server:
    """A server with the API of OpenAI."""

    def __init__(self, process: Process, port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"

    def post(self, path: str, body: Mapping[str, Any], **headers: str) -> dict[str, Any]:
        """The answer to one request."""
        request = urllib.request.Request(
            self.url + path,
            json.dumps(body).encode(),
            {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}},
        )
        try:
            with urllib.request.urlopen(request, timeout=180) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{error.code}: {error.read().decode(errors='replace')}") from None

    def complete(self, prompt: Any, **settings: Any) -> dict[str, Any]:
        """A completion, with the ids of its tokens."""
        headers = settings.pop("headers", {})
        body = {"model": "m", "prompt": prompt, "temperature": 0, "return_token_ids": True, **settings}
        return self.post("/v1/completions", body, **headers)

    def abandon(self, prompt: Any, after_s: float, **settings: Any) -> None:
        """Ask for a stream and hang up after a while."""
        host, port = self.url.removeprefix("http://").split(":")
        body = json.dumps({"model": "m", "prompt": prompt, "stream": True, "temperature": 0, **settings})
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        with socket.create_connection((host, int(port))) as line:
            line.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            line.settimeout(60)
            line.recv(1)
            time.sleep(after_s)

    def metrics(self) -> dict[str, float]:
        """What it says of itself for Prometheus, sums over labels."""
        found: dict[str, float] = defaultdict(float)
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as answer:
            for line in answer.read().decode().splitlines():
                if line and not line.startswith("#"):
                    name, _, value = line.rpartition(" ")
                    found[name.partition("{")[0]] += float(value)
        return found

    def wait(self) -> None:
        """Until it answers."""
        limit = time.monotonic() + UP_S
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except OSError:
                pass
            assert self.process.is_alive, f"it ended:\n{self.process.said[-4000:]}"
            assert time.monotonic() < limit, f"not up:\n{self.process.said[-4000:]}"
            time.sleep(0.2)


class Watcher:
    """Every frame and event that a collector hands to a viewer."""

    def __init__(self, port: int) -> None:
        self.frames: list[Frame] = []
        self.events: list[RequestEvent] = []
        self.topologies: dict[str, Topology] = {}
        self.gaps = 0
        self._port = port
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        schemas: dict[str, Any] = {}
        with suppress(CommandError), Collector(Address("127.0.0.1", self._port)) as line:
            for message in line.watch(history_s=600.0):
                if self._over.is_set():
                    return
                kind = message.WhichOneof("message")
                if kind == "replica":
                    schemas[message.replica.key] = message.replica.schema
                    self.topologies[message.replica.key] = topology_from_pb(message.replica.topology)
                elif kind == "batch":
                    batch = decode_batch(message.batch.batch, schemas[message.batch.key])
                    self.frames += batch.frames()
                    self.events += batch.events
                elif kind == "gap":
                    self.gaps += message.gap.frames

    def by_request(self) -> dict[str, list[Frame]]:
        """The frames of each request, by sequence and position."""
        found: dict[str, list[Frame]] = defaultdict(list)
        for frame in list(self.frames):
            found[frame.request_id].append(frame)
        for frames in found.values():
            frames.sort(key=lambda frame: (frame.sequence, frame.position))
        return found

    def of(self, request_id: str, tokens: int) -> list[Frame]:
        """The frames of one request, when `tokens` have come."""
        return self.until(lambda: (f := self.by_request().get(request_id, [])) and len(f) >= tokens and f)

    def ends(self, request_id: str) -> list[RequestEvent]:
        """What happened to one request, when it is over."""

        def over() -> list[RequestEvent]:
            events = [e for e in list(self.events) if e.request_id == request_id]
            return events if any(e.kind in ("finished", "aborted") for e in events) else []

        return self.until(over)

    def until(self, condition: Any) -> Any:
        """What `condition` gives, as soon as it is true."""
        limit = time.monotonic() + SETTLE_S
        while not (found := condition()):
            assert self._thread.is_alive(), "the watching thread ended"
            assert time.monotonic() < limit, f"{len(self.frames)} frames, {len(self.events)} events"
            time.sleep(0.05)
        return found

    def stop(self) -> None:
        """Watch no longer."""
        self._over.set()


def until(condition: Callable[[], Any]) -> Any:
    """What `condition` gives, as soon as it is true."""
    limit = time.monotonic() + SETTLE_S
    while not (found := condition()):
        assert time.monotonic() < limit, "what was waited for did not come"
        time.sleep(0.1)
    return found


def first_of(ask: Callable[[], Any], process: Process) -> Any:
    """What `ask` gives, as soon as the process answers."""
    limit = time.monotonic() + UP_S
    while True:
        try:
            return ask()
        except OSError:
            pass
        assert process.is_alive, f"it ended:\n{process.said[-4000:]}"
        assert time.monotonic() < limit, f"not up:\n{process.said[-4000:]}"
        time.sleep(0.2)


@dataclass(frozen=True)
class Stage:
    """A collector and a server that is observed."""

    server: Server
    collector: Process
    watcher: Watcher
    port: int

    def account(self) -> Any:
        """What the agent last said of itself."""
        with Collector(Address("127.0.0.1", self.port)) as line:
            (replica,) = line.replicas().replicas
            return replica.agent

    def wait_until_watched(self) -> None:
        """Until the agent has heard that somebody watches; it links up with the first token."""
        limit = time.monotonic() + SETTLE_S
        while True:
            request_id = self.server.complete("A", max_tokens=2, ignore_eos=True)["id"]
            asked = time.monotonic()
            while time.monotonic() < asked + 1.0:
                if len(self.watcher.by_request().get(request_id, ())) == 2:
                    return
                time.sleep(0.05)
            assert time.monotonic() < limit, self.server.process.said[-4000:]


@contextmanager
def collector(folder: Path, *, history: str = "all") -> Iterator[tuple[Process, int]]:
    """A collector of its own, and what it keeps while nobody watches."""
    port = free_port()
    command = [str(BIN / "fulgurite"), "collector", "--listen", f"127.0.0.1:{port}", "--history", history]
    process = Process(folder / "collector.log", *command, env=surroundings())
    try:
        limit = time.monotonic() + 60
        while "listening" not in process.said:
            assert process.is_alive, process.said
            assert time.monotonic() < limit, process.said
            time.sleep(0.1)
        yield process, port
    finally:
        process.stop()


@contextmanager
def listening(log: Path, command: Sequence[str], env: Mapping[str, str]) -> Iterator[Server]:
    """A server that takes ``--port``, when it answers."""
    port = free_port()
    process = Process(log, *command, "--port", str(port), env=surroundings(**env))
    server = Server(process, port)
    try:
        server.wait()
        yield server
    finally:
        process.stop()


@contextmanager
def vllm(
    folder: Path, model: Path, *arguments: str, env: Mapping[str, str], command: Sequence[str] = ()
) -> Iterator[Server]:
    """`vllm serve MODEL`, on a port of its own, with few threads and little memory."""
    port = free_port()
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(folder / "cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
        **env,
    }
    words = [*command, str(BIN / "vllm"), "serve", str(model), "--port", str(port), "--host", "127.0.0.1"]
    words += ["--served-model-name", "m", "--max-model-len", "384", "--max-num-seqs", "64", *arguments]
    process = Process(folder / "vllm.log", *words, env=surroundings(**settings))
    server = Server(process, port)
    try:
        server.wait()
        yield server
    finally:
        process.stop()


@contextmanager
def stage(folder: Path, model: Path, *arguments: str, by_run: bool = False, **env: str) -> Iterator[Stage]:
    """A collector, and a server that sends it what it measures.

    Parameters
    ----------
    arguments : of the server; ``{collector}`` in them is the collector's address.
    by_run : the server is started with ``fulgurite run``; else variables configure it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"FULGURITE_TOKENS": "ids", "FULGURITE_BUDGET": "none", **env}
    with collector(folder) as (process, port):
        place = f"127.0.0.1:{port}"
        command = [str(BIN / "fulgurite"), "run", "--collector", place, "--"] if by_run else []
        settings |= {} if by_run else {"FULGURITE_ENDPOINT": place}
        told = [word.replace("{collector}", place) for word in arguments]
        with vllm(folder, model, *told, env=settings, command=command) as server:
            watcher = Watcher(port)
            try:
                found = Stage(server, process, watcher, port)
                found.wait_until_watched()
                yield found
                assert "was left out" not in server.process.said, server.process.said
            finally:
                watcher.stop()


@contextmanager
def stage_or_skip(folder: Path, model: Path, *arguments: str, **env: str) -> Iterator[Stage]:
    """As `stage`; where the server ends before it is up, and does so without us too, the test is skipped."""
    with ExitStack() as stack:
        try:
            found = stack.enter_context(stage(folder, model, *arguments, **env))
        except AssertionError as error:
            if "it ended" in str(error):
                _skip_where_it_cannot(folder / "without-us", model, *arguments)
            raise
        yield found


def _skip_where_it_cannot(folder: Path, model: Path, *arguments: str) -> None:
    import pytest  # the benchmark uses this module without it

    folder.mkdir()
    try:
        with vllm(folder, model, *arguments, env={}):
            pass
    except AssertionError as error:
        pytest.skip(f"vLLM without us does not run with {' '.join(arguments)} here: {str(error)[-300:]}")
