"""The same arrays at the same tokens a second through our own pipeline, OpenTelemetry's SDK, and Rerun's."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.collector_process import free_port
from benchmarks.load.shape import Shape
from benchmarks.pipeline import programs
from benchmarks.pipeline.meter import Cost, Meter, micros
from benchmarks.pipeline.programs import ROOT, result, start_module

ENVIRONMENT: Final = ROOT / "build" / "peers" / "pipeline"
PACKAGES: Final = ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-grpc", "rerun-sdk")
PROGRAMS: Final = Path(__file__).parent / "peers"
READY_S: Final = 3.0
Row = dict[str, Any]


def environment() -> str | None:
    """Make the peers' environment; why there is none, where there is none."""
    python = ENVIRONMENT / "bin" / "python"
    try:
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
        if _has_packages(python):
            return None
        pip = [str(python), "-m", "pip", "install", "--quiet", *PACKAGES]
        subprocess.run(pip, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        said = str(error.stderr or error).strip().splitlines()
        return said[-1] if said else "could not be installed"
    return None


def _has_packages(python: Path) -> bool:
    program = "import opentelemetry.sdk, opentelemetry.exporter.otlp.proto.grpc, rerun"
    return subprocess.run([str(python), "-c", program], capture_output=True, check=False).returncode == 0


def versions() -> dict[str, str]:
    """What is in the peers' environment."""
    program = (
        f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {PACKAGES!r}}}))"
    )
    done = subprocess.run([_python(), "-c", program], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def beside(shape: Shape, seconds: float) -> list[Row]:
    """One row each, for one replica of `shape`."""
    return [_ours(shape, seconds), _otlp(shape, seconds), *_rerun(shape, seconds)]


def _row(shape: Shape, who: str, sent: Row, cost: Cost, **more: Any) -> Row:
    tokens = sent["tokens"]
    return {
        "what": f"{shape.name} at {shape.tokens_per_s:g} tokens/s: {who}",
        "tokens_per_s": round(tokens / sent["wall_s"], 1),
        "producer_us": micros(sent["cpu_s"], tokens),
        "server_us": micros(cost.cpu_s, tokens),
        "store_us": micros(cost.store_cpu_s, tokens) if cost.store_cpu_s else None,
        "server_rss_mib": cost.rss_mib,
        **more,
    }


def _ours(shape: Shape, seconds: float) -> Row:
    with programs.collector() as (address, pid):
        watching = start_module("benchmarks.pipeline.audience", address, "--seconds", seconds - 2)
        with Meter(pid) as meter:
            agent = start_module(
                "benchmarks.pipeline.agent_load", address, "--shape", shape.name, "--seconds", seconds
            )
            sent = result(agent, timeout_s=seconds + 60)
        seen = result(watching, timeout_s=seconds + 90)
    spent: Row = {
        "tokens": sent["tokens"],
        "wall_s": sent["tokens"] / sent["tokens_per_s"],
        "cpu_s": sent["producer_us_per_token"] * sent["tokens"] / 1e6,
    }
    return _row(
        shape, "fulgurite, one viewer", spent, meter.cost,
        lost=sent["tokens"] - sent["acknowledged"] - sent["folded"],
        folded=sent["folded"],
        p99_ms=seen["p99_ms"],
    )  # fmt: skip


def _otlp(shape: Shape, seconds: float) -> Row:
    port = free_port()
    command = [_python(), str(PROGRAMS / "otlp_receiver.py"), str(port)]
    receiver = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        time.sleep(READY_S)
        with Meter(receiver.pid) as meter:
            sent = _produced("otlp_producer.py", port, shape, seconds)
        out, _ = receiver.communicate(timeout=30)
    finally:
        receiver.kill()
    received = json.loads(out)
    return _row(
        shape, "OpenTelemetry SDK, a span a token", sent, meter.cost,
        lost=sent["tokens"] - received["spans"],
        bytes_per_token=round(received["nbytes"] / max(1, received["spans"])),
    )  # fmt: skip


def _rerun(shape: Shape, seconds: float) -> Iterator[Row]:
    for name, who in (
        ("rerun_producer.py", "Rerun SDK, a log a token"),
        ("rerun_columns.py", "Rerun SDK, columns of 256"),
    ):
        port = free_port()
        with _proxy(port) as pid, Meter(pid) as meter:
            sent = _produced(name, port, shape, seconds)
        yield _row(shape, who, sent, meter.cost)


@contextmanager
def _proxy(port: int) -> Iterator[int]:
    command = [str(ENVIRONMENT / "bin" / "rerun"), "--serve-grpc", "--port", str(port)]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        time.sleep(READY_S)
        yield process.pid
    finally:
        _end_with_children(process)


def _end_with_children(process: subprocess.Popen[bytes]) -> None:
    """The command is a script that starts the program proper, which must not outlive it."""
    import psutil

    children = psutil.Process(process.pid).children(recursive=True)
    for child in children:
        child.terminate()
    process.terminate()
    process.wait(timeout=15)


def _produced(name: str, port: int, shape: Shape, seconds: float) -> Row:
    arguments = [port, shape.layers, shape.heads, shape.tokens_per_s, seconds]
    command = [_python(), str(PROGRAMS / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=6 * seconds + 120, check=True)
    found: Row = json.loads(done.stdout.splitlines()[-1])
    return found


def _python() -> str:
    return str(ENVIRONMENT / "bin" / "python")
