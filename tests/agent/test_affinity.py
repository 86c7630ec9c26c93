"""Our thread does not run where OpenMP was bound to."""

from __future__ import annotations

import multiprocessing
import os
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from fulgurite.agent import affinity
from fulgurite.agent.affinity import stand_aside

if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
    pytest.skip("this needs two processors, and a system that tells which", allow_module_level=True)

FIRST = min(os.sched_getaffinity(0))


def _child(environment: dict[str, str], narrows: bool, told: Any) -> None:
    os.environ.update(environment)
    if narrows:
        os.sched_setaffinity(0, {FIRST})  # as OpenMP does it with the first thread
    found: list[set[int]] = []

    def run() -> None:
        stand_aside()
        found.append(os.sched_getaffinity(0))
        inner = threading.Thread(target=lambda: found.append(os.sched_getaffinity(0)))
        inner.start()
        inner.join()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    told.put((found, os.sched_getaffinity(0)))


@pytest.mark.parametrize(
    ("environment", "narrows", "stands_aside"),
    [
        ({"OMP_PROC_BIND": "true"}, True, True),
        ({"KMP_AFFINITY": "explicit"}, True, True),
        ({}, True, False),  # somebody chose that, and not OpenMP
        ({"OMP_PROC_BIND": "true"}, False, False),
    ],
)
def test_it_stands_aside_where_openmp_is_bound(
    environment: dict[str, str], narrows: bool, stands_aside: bool
) -> None:
    allowed = os.sched_getaffinity(0)
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    child = context.Process(target=_child, args=(environment, narrows, told))
    child.start()
    try:
        found, of_the_first_thread = told.get(timeout=60)
    finally:
        child.join(60)
    bound = {FIRST} if narrows else allowed
    assert of_the_first_thread == bound, "it is the host's, and stays as it is"
    assert found == [allowed - bound if stands_aside else bound] * 2


@pytest.mark.parametrize(("allowed", "wanted"), [({0, 1, 2, 3}, [{2, 3}]), ({0, 1, 2}, [{2}]), ({0, 1}, [])])
def test_it_takes_what_is_left_were_it_one(
    allowed: set[int], wanted: list[set[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[set[int]] = []
    monkeypatch.setenv("OMP_PLACES", "{0,1}")
    monkeypatch.setattr(affinity.multiprocessing, "parent_process", lambda: SimpleNamespace(pid=1))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: allowed if pid else {0, 1})
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, these: chosen.append(these))
    stand_aside()
    assert chosen == wanted


def test_a_process_that_nobody_started_so_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_PROC_BIND", "true")
    before = os.sched_getaffinity(0)
    stand_aside()
    assert os.sched_getaffinity(0) == before
