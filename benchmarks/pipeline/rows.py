"""Each row of the target table that belongs to the pipeline: how it is measured."""

from __future__ import annotations

import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from benchmarks.collector_process import free_port
from benchmarks.pipeline import away, programs
from benchmarks.pipeline.meter import Meter, micros
from benchmarks.pipeline.programs import result, run_load, start_load, start_module
from benchmarks.wire import LOADS, encoding
from fulgurite.v1 import viewer_pb2, viewer_pb2_grpc

AUDIENCE = "benchmarks.pipeline.audience"
FULL = 256
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Length:
    """How long the parts of a run are."""

    load_s: float
    history_s: float
    kills: int
    phases: int
    watch_s: float
    away_s: float


LENGTHS = {"full": Length(8.0, 60.0, 3, 2, 30.0, 60.0), "quick": Length(4.0, 5.0, 1, 1, 12.0, 5.0)}


def ingest(length: Length) -> list[Row]:
    """Decode, aggregate, store: tokens for a second of a core, when there is always more to take."""
    cases = [("W1", 8, 25_000, FULL), ("W8B", 8, 8_000, FULL), ("W1", 8, 2000, None), ("W8B", 8, 500, None)]
    return [_ingest(*case, length) for case in cases]


def _ingest(shape: str, replicas: int, per_s: float, batch: int | None, length: Length) -> Row:
    options: Row = {"shape": shape, "replicas": replicas, "tokens_per_s": per_s}
    if batch:
        options["batch_tokens"] = batch
    with programs.collector() as (address, pid):
        found, cost, seconds = _loaded(address, pid, length.load_s, options)
    stored = found["acknowledged"]
    return {
        "what": f"ingest {shape}, {'full batches' if batch else 'a fleet of 8'}",
        "offered_per_s": round(per_s * replicas),
        "stored_per_s": round(stored / seconds),
        "tokens_per_core_s": round(stored / cost.cpu_s),
        "collector_us": micros(cost.cpu_s, stored),
        "store_us": micros(cost.store_cpu_s, stored),
        "rss_mib": cost.rss_mib,
        "dropped": found["dropped"],
        "reconnects": found["reconnects"],
        "late_p99_ms": found["late_p99_ms"],
        "ack_p99_ms": found["ack_p99_ms"],
        "target": _INGEST_TARGETS.get((shape, batch)),
    }


_INGEST_TARGETS: dict[tuple[str, int | None], str] = {
    ("W1", FULL): ">= 100,000 tokens a core second, <= 256 MiB",
    ("W8B", FULL): ">= 40,000 tokens a core second, <= 256 MiB",
}


def _loaded(address: str, pid: int, seconds: float, options: Row) -> tuple[Row, Any, float]:
    """Put a load on a collector; what became of it, what the collector used, and how long it took."""
    run_load(address, seconds=1.0, **options)  # what is imported and allocated once is not counted
    began_s = time.monotonic()
    with Meter(pid) as meter:
        found = run_load(address, seconds=seconds, **options)
    if not found["acknowledged"]:
        raise RuntimeError(f"no token was acknowledged in {seconds:g} s: the machine is too busy for it")
    return found, meter.cost, min(time.monotonic() - began_s, found["seconds"])


def two_processes(length: Length) -> list[Row]:
    """What a token costs where two processes serve, and where one does: with as much for each process, and
    with the same load on one alone. In turns."""
    return [_two_processes(shape, per_s, length) for shape, per_s in (("W1", 25_000), ("W8B", 8_000))]


def _two_processes(shape: str, per_s: int, length: Length) -> Row:
    cases = {"one, half": (1, 4), "one": (1, 8), "two": (2, 8)}
    each: dict[str, list[float]] = {name: [] for name in cases}
    wall: list[float] = []
    most_mib = 0.0
    for _ in range(4 * length.phases - 3):
        for name, (workers, replicas) in cases.items():
            options: Row = {"shape": shape, "replicas": replicas, "tokens_per_s": per_s, "batch_tokens": FULL}
            with programs.collector("--workers", str(workers)) as (address, pid):
                load, cost, seconds = _loaded(address, pid, length.load_s / 2, options)
            each[name].append(cost.cpu_s / load["acknowledged"])
            most_mib = max(most_mib, cost.rss_mib)
            if name == "two":
                wall.append(load["acknowledged"] / seconds)
    two = _median(each["two"])
    row: Row = {
        "what": f"two processes, {shape}",
        "offered_per_s": per_s * 8,
        "stored_per_s": round(_median(wall)),
        "collector_us": round(two * 1e6, 2),
        "rss_mib": most_mib,
        "cpu_per_token_against_one_alike": round(two / _median(each["one, half"]), 3),
        "cpu_per_token_against_one_with_all": round(two / _median(each["one"]), 3),
    }
    for name, found in each.items():
        told = " ".join(f"{seconds * 1e6:.1f}" for seconds in found)
        row[f"cpu_per_token_of_{name.replace(', ', '_')}_us"] = told
    return {**row, "target": "CPU per token <= 1.10 of one process that has as much to do"}


def latency(length: Length) -> list[Row]:
    """From a token's commitment until a viewer has decoded it, through the agent's own exporter."""
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        programs.store(Path(folder)) as url,
        programs.collector("--redis", url) as (one, _),
        programs.collector("--redis", url) as (two, _),
    ):
        for name, address, target in (
            ("same collector", one, "p99 <= 15 ms"),
            ("through the store to another collector", two, "p99 <= 30 ms"),
        ):
            rows.append({"what": f"token to viewer, {name}", **_seen(one, address, length), "target": target})
    return rows


def _seen(writes_to: str, reads_from: str, length: Length) -> Row:
    agent = start_module("benchmarks.pipeline.agent_load", writes_to, "--seconds", length.load_s + 8)
    seen = result(start_module(AUDIENCE, reads_from, "--seconds", length.load_s), timeout_s=120)
    sent = result(agent, timeout_s=120)
    return {
        "tokens_per_s": sent["tokens_per_s"],
        "p50_ms": seen["p50_ms"],
        "p99_ms": seen["p99_ms"],
        "from_collector_p99_ms": seen["from_collector_p99_ms"],
        "dropped": sent["dropped"],
        "gap_frames": seen["gaps"],
    }


def fan_out(length: Length) -> list[Row]:
    """50 viewers of 8 replicas; in every other phase one more, that stops reading and wakes again.

    The shape is the larger one: a viewer must miss more than a collector and the connection hold for it.
    """
    phases: dict[bool, list[Row]] = {False: [], True: []}
    with programs.collector() as (address, pid):
        total_s = length.phases * 2 * (length.watch_s + 90) + 20  # it is ended when all have seen
        options: Row = {"shape": "W8B", "replicas": 8, "tokens_per_s": FAN_TOKENS_PER_S, "batch_tokens": 8}
        load = start_load(address, seconds=total_s, **options)
        time.sleep(3)
        with Meter(pid) as meter:
            for _ in range(length.phases):
                for stalled in (False, True):
                    arguments = ["--viewers", 50, "--seconds", length.watch_s]
                    audience = start_module(
                        AUDIENCE, address, *arguments, *(["--stalled"] if stalled else [])
                    )
                    phases[stalled].append(result(audience, timeout_s=length.watch_s + 150))
        programs.end(load)
    alone, slept = phases[False], phases[True]
    return [
        {
            "what": f"50 viewers x 8 replicas of W8B at {FAN_TOKENS_PER_S:g} tokens/s",
            "p50_ms": _median([phase["p50_ms"] for phase in alone]),
            "p99_ms": _median([phase["p99_ms"] for phase in alone]),
            "p99_ms_of_each_phase": " ".join(str(phase["p99_ms"]) for phase in alone),
            "with_one_stalled": " ".join(str(phase["p99_ms"]) for phase in slept),
            "stalled_live_after_s": _worst([phase["stalled_live_after_s"] for phase in slept]),
            "stalled_gaps": sum(phase["stalled_gaps"] for phase in slept),
            "stalled_gap_frames": sum(phase["stalled_gap_frames"] for phase in slept),
            "gap_frames_of_others": sum(phase["gaps"] for phase in alone + slept),
            "rss_mib": meter.cost.rss_mib,
            "target": "p99 of others changes by <= 10 %; live again <= 1 s, with a gap",
        }
    ]


FAN_TOKENS_PER_S = 40.0


def _worst(values: list[float | None]) -> float | None:
    """The largest; None where one of them never came."""
    known = [value for value in values if value is not None]
    return max(known) if len(known) == len(values) else None


def _median(values: list[Any]) -> float:
    if None in values:
        raise RuntimeError("a phase saw no frame: the machine is too busy for it")
    middle: float = sorted(values)[len(values) // 2]
    return middle


def killed(length: Length) -> list[Row]:
    """SIGKILL of the collector under W1 while the store lives on; the same port again at once."""
    return [_killed(fsync, length) for fsync in ("everysec", "always")]


def _killed(fsync: str, length: Length) -> Row:
    from benchmarks.pipeline.aftermath import Aftermath

    address = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory() as folder, programs.store(Path(folder), fsync=fsync) as url:
        command = ("--redis", url, "--durability", fsync, "--retention-bytes", str(1 << 30))
        seconds = 8.0 * (length.kills + 1)
        aftermath = Aftermath(address, url)
        collector = programs.start_collector(address, *command)
        try:
            agent = start_module("benchmarks.pipeline.agent_load", address, "--seconds", seconds)
            time.sleep(12)
            resumed, silent = [], []
            for _ in range(length.kills):
                killed_s = time.monotonic()
                collector.send_signal(signal.SIGKILL)
                collector.wait()
                collector = programs.start_collector(address, *command)
                up_s = time.monotonic()
                aftermath.await_frames()
                resumed.append(time.monotonic() - up_s)
                silent.append(time.monotonic() - killed_s)
                time.sleep(4)
            sent = result(agent, timeout_s=180)
        finally:
            programs.end(collector)
        stored = aftermath.stored()
    return {
        "what": f"collector killed {length.kills} times under W1, {fsync}",
        "tokens": sent["tokens"],
        "dropped": sent["dropped"],
        "folded": sent["folded"],
        "acknowledged_and_lost": sent["acknowledged"] - len(set(stored)),
        "duplicates": len(stored) - len(set(stored)),
        "resumed_after_s": round(max(resumed), 2),
        "silent_s": round(max(silent), 2),
        "target": "0 lost, 0 duplicates, agents resume <= 3 s",
    }


def cold(length: Length) -> list[Row]:
    """A viewer that comes when there is a past: its first frame, and the whole of that past."""
    with programs.collector() as (address, _):
        load = start_load(address, seconds=length.history_s + 60, shape="W1", replicas=1)
        time.sleep(length.history_s + 2)
        found = [_cold(address, length.history_s) for _ in range(5)]
        programs.end(load)
    firsts, pasts, frames = zip(*found, strict=True)
    return [
        {
            "what": f"cold viewer, {length.history_s:g} s of W1 behind it",
            "first_frame_ms": round(_median(list(firsts)), 1),
            "first_frame_ms_worst": round(max(firsts), 1),
            "whole_past_ms": round(_median(list(pasts)), 1),
            "frames_of_the_past": _median(list(frames)),
            "target": "first frame <= 300 ms",
        }
    ]


def _cold(address: str, history_s: float) -> tuple[float, float, int]:
    """From connecting: ms to the first frames, ms to the present, frames in between."""
    began_s = time.monotonic()
    first_s, frames = None, 0
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub: Any = viewer_pb2_grpc.ViewerServiceStub(channel)
        for response in stub.Watch(viewer_pb2.WatchRequest(history_s=history_s), timeout=60):
            if response.HasField("batch"):
                first_s = first_s or time.monotonic()
                frames += _count(response.batch.batch)
            if response.HasField("caught_up"):
                break
    if first_s is None:
        raise RuntimeError("the viewer saw no frame")
    return (first_s - began_s) * 1e3, (time.monotonic() - began_s) * 1e3, frames


def _count(batch: bytes) -> int:
    from fulgurite.wire.codec import peek

    return peek(batch)[2]


def wire(_: Length) -> list[Row]:
    """Bytes of the samples and of all else."""
    rows = []
    for load in LOADS:
        for name, most in (("compact", 1.2), ("exact", 2.3)):
            found = encoding(load, name)
            other = found["full_bytes_per_token"] - found["full_bytes_per_sample"] * load.samples
            rows.append(
                {
                    "what": f"wire {load.name}, {name}",
                    "bytes_per_sample": found["full_bytes_per_sample"],
                    "other_bytes_per_token": round(other, 1),
                    "target": f"<= {most} B a sample and 60 B a token",
                }
            )
    return rows


def agent(length: Length) -> list[Row]:
    """See `away.agent`."""
    return away.agent(length.load_s / 2)


def collector_away(length: Length) -> list[Row]:
    """See `away.collector_away`."""
    return away.collector_away(length.away_s)


def redis_away(length: Length) -> list[Row]:
    """See `away.store_away`."""
    return away.store_away(length.away_s)


ROWS = {
    "agent": agent,
    "ingest": ingest,
    "two_processes": two_processes,
    "latency": latency,
    "fan_out": fan_out,
    "killed": killed,
    "collector_away": collector_away,
    "redis_away": redis_away,
    "cold": cold,
    "wire": wire,
}
