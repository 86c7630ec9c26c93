"""Child processes: decided without any, and done with real ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fulgurite.cli.demo.plan import ProcessSpec, Role
from fulgurite.cli.demo.processes import End, Processes, end_of, exit_text, stop_waves

DEADLINE_S = 30.0


def spec(name: str, role: Role, *arguments: str, module: str = "actor") -> ProcessSpec:
    return ProcessSpec(name=name, role=role, module=module, arguments=arguments)


CAST = [spec("collector", "collector"), spec("replica-0", "replica"), spec("film", "film")]


def until(condition: Callable[[], object]) -> None:
    limit_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < limit_s, "not within the deadline"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def test_a_run_goes_on_while_everybody_does() -> None:
    assert end_of(CAST, dict.fromkeys(("collector", "replica-0", "film"))) is None


def test_a_film_that_is_done_ends_the_run_well() -> None:
    assert end_of(CAST, {"film": 0}) == End("film", 0, False)


@pytest.mark.parametrize(("name", "status"), [("replica-0", 0), ("collector", 1), ("film", 1), ("film", -11)])
def test_everybody_else_who_leaves_is_a_failure(name: str, status: int) -> None:
    assert end_of(CAST, {name: status}) == End(name, status, True)


def test_a_failure_comes_before_a_film_that_is_done() -> None:
    assert end_of(CAST, {"film": 0, "replica-0": 1}) == End("replica-0", 1, True)


def test_the_collector_is_asked_to_leave_last() -> None:
    assert stop_waves(CAST) == [["replica-0", "film"], ["collector"]]


def test_an_exit_status_is_told_in_words() -> None:
    assert (exit_text(3), exit_text(-11)) == ("status 3", "signal SIGSEGV")


ACTOR = """
import os, signal, subprocess, sys, time
what = sys.argv[1]
if what == "die":
    print("trouble one", file=sys.stderr)
    print("trouble two", file=sys.stderr)
    sys.exit(3)
if what == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if what == "parent":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    print(child.pid, flush=True)
print("ready", os.environ.get("PART", ""), flush=True)
time.sleep(300)
"""


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Processes]:
    (tmp_path / "actor.py").write_text(ACTOR)
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *([before] if before else [])]))
    group = Processes()
    yield group
    group.stop(grace_s=1.0)


def test_a_process_that_dies_is_noticed_with_its_last_lines(processes: Processes) -> None:
    processes.start(spec("replica-0", "replica", "die"))
    until(lambda: processes.end() is not None)
    assert processes.end() == End("replica-0", 3, True)
    processes.stop()
    assert processes.last_lines("replica-0") == ["trouble one", "trouble two"]


def test_what_a_process_says_is_passed_on_with_its_name(processes: Processes) -> None:
    part = ProcessSpec(
        name="viewer", role="viewer", module="actor", arguments=("wait",), environment={"PART": "ghost"}
    )
    processes.start(part)
    assert processes.said.get(timeout=DEADLINE_S) == ("viewer", "ready ghost")


def test_stopping_leaves_no_process_not_even_of_one_that_does_not_listen(processes: Processes) -> None:
    processes.start(spec("deaf", "replica", "deaf"))
    processes.start(spec("parent", "collector", "parent"))
    said = [processes.said.get(timeout=DEADLINE_S) for _ in range(3)]
    grandchild = next(int(line) for name, line in said if name == "parent" and line.isdecimal())
    pids = [*processes.pids().values(), grandchild]
    assert all(is_alive(pid) for pid in pids)
    processes.stop(grace_s=0.5)
    until(lambda: not any(is_alive(pid) for pid in pids))


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_process_ends_with_the_one_that_started_it_even_when_that_is_killed(processes: Processes) -> None:
    program = (
        "import time\n"
        "from fulgurite.cli.demo.plan import ProcessSpec\n"
        "from fulgurite.cli.demo.processes import Processes\n"
        "group = Processes()\n"
        "group.start(ProcessSpec(name='a', role='replica', module='actor', arguments=('wait',)))\n"
        "group.said.get(timeout=30)\n"
        "print(group.pids()['a'], flush=True)\n"
        "time.sleep(300)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        assert is_alive(pid)
        starter.send_signal(signal.SIGKILL)
        starter.wait(timeout=DEADLINE_S)
    until(lambda: not is_alive(pid))


def test_a_process_listens_when_it_says_so_itself(processes: Processes) -> None:
    part = replace(spec("collector", "collector", "wait"), listening="ready")
    assert not processes.is_listening("collector")
    processes.start(part)
    assert processes.said.get(timeout=DEADLINE_S) == ("collector", "ready")
    assert processes.is_listening("collector")
    processes.start(spec("replica-0", "replica", "wait"))
    assert processes.said.get(timeout=DEADLINE_S) == ("replica-0", "ready")
    assert not processes.is_listening("replica-0")


def test_one_that_ended_is_started_once_more(processes: Processes) -> None:
    processes.start(spec("collector", "collector", "die"))
    until(lambda: processes.end() is not None)
    processes.start(spec("collector", "collector", "wait"))
    assert processes.end() is None
    assert processes.said.get(timeout=DEADLINE_S) == ("collector", "ready")
    assert processes.last_lines("collector") == ["ready"]
