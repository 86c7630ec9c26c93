"""Requests and tokens as a timeline: the trace event format of Chrome, which Perfetto reads as well.

A replica is a process, a sequence of a request is a thread, a token is a slice from the one before it to its
own commitment, and the figures of a token are the arguments of its slice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fulgurite.telemetry.requests import RequestRecord
from fulgurite.telemetry.spans import generation_times


class Timeline:
    """Numbers replicas and sequences, and gives the events of each request."""

    def __init__(self) -> None:
        self._processes: dict[str, int] = {}
        self._threads = 0

    def events(self, record: RequestRecord, model: str) -> Iterator[dict[str, Any]]:
        """The events of one request, what they refer to first."""
        pid = self._processes.get(record.replica)
        if pid is None:
            pid = self._processes[record.replica] = len(self._processes) + 1
            yield _name("process_name", pid, 0, f"{record.replica} ({model})")
        if not record.columns:
            self._threads += 1
            yield _name("thread_name", pid, self._threads, record.request_id)
            yield _request(record, pid, self._threads)
            return
        seconds = generation_times(record)
        for sequence in sorted(set(record.columns["sequence"].tolist())):
            self._threads += 1
            suffix = f" #{sequence}" if record.sequences > 1 else ""
            yield _name("thread_name", pid, self._threads, f"{record.request_id}{suffix}")
            yield _request(record, pid, self._threads)
            for row in (record.columns["sequence"] == sequence).nonzero()[0].tolist():
                yield _token(record, row, float(seconds[row]), pid, self._threads)


def _name(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}


def _request(record: RequestRecord, pid: int, tid: int) -> dict[str, Any]:
    told = {
        "request": record.request_id,
        "outcome": record.outcome,
        "reason": record.reason,
        "prompt_tokens": record.prompt_tokens,
        "output_tokens": record.output_tokens,
        "trace_id": record.trace_id,
    }
    return {
        "ph": "X",
        "cat": "request",
        "name": "request",
        "pid": pid,
        "tid": tid,
        "ts": record.started_ns / 1e3,
        "dur": max(0, record.ended_ns - record.started_ns) / 1e3,
        "args": {name: value for name, value in told.items() if value not in ("", None)},
    }


def _token(record: RequestRecord, row: int, seconds: float, pid: int, tid: int) -> dict[str, Any]:
    columns = record.columns
    told = {name: columns[name][row].item() for name in columns if not name.endswith("_ns")}
    ended_ns = int(columns["ended_ns"][row])
    return {
        "ph": "X",
        "cat": "token",
        "name": f"token {int(columns['position'][row])}",
        "pid": pid,
        "tid": tid,
        "ts": ended_ns / 1e3 - seconds * 1e6,
        "dur": seconds * 1e6,
        "args": {name: value for name, value in told.items() if value == value},  # a NaN says nothing
    }
