"""`fulgurite run`: whatever loads a model is observed, in the command and in its children."""

from __future__ import annotations

import json
import os
import signal
import sys
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.system import model_folder
from tests.system.conftest import Background, Stage
from tests.system.listening import Listening

pytestmark = pytest.mark.system
FreePort = Callable[[], int]
NEW = 6
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

LOADS = """
import os, torch
torch.set_num_threads(1)
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(os.environ["MODEL"]).eval()

def answer(ids):
    with torch.inference_mode():
        out = model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)
    return out[0, len(ids):].tolist()
"""
HTTP_SERVER = (
    LOADS
    + """
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        ids = json.loads(self.rfile.read(int(self.headers["content-length"])))
        body = json.dumps({"ids": answer(ids), "pid": os.getpid()}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): ...

HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
)
FASTAPI = (
    LOADS
    + """
from fastapi import Body, FastAPI
app = FastAPI()

@app.post("/")
def generate(ids: list[int] = Body()):
    return {"ids": answer(ids), "pid": os.getpid()}
"""
)
WSGI = (
    LOADS
    + """
import json

def app(environ, start_response):
    ids = json.loads(environ["wsgi.input"].read())
    body = json.dumps({"ids": answer(ids), "pid": os.getpid()}).encode()
    start_response("200 OK", [("content-length", str(len(body)))])
    return [body]
"""
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder.save(tmp_path_factory.mktemp("model"))


@pytest.fixture
def listening() -> Iterator[Listening]:
    found = Listening()
    yield found
    found.stop()


Run = Callable[..., Background]


@pytest.fixture
def run(stage: Stage, listening: Listening, model: Path, tmp_path: Path) -> Run:
    """Starts `fulgurite run -- …` in a folder of its own."""

    def start(*command: str, options: tuple[str, ...] = (), **more: str) -> Background:
        given = (
            "run",
            "--collector",
            listening.endpoint,
            "--tokens",
            "ids",
            "--budget",
            "none",
            *options,
            "--",
        )
        environment = {"MODEL": str(model), "PYTHONPATH": str(tmp_path), **more}
        return stage.fulgurite(*given, *command, environment=environment)

    return start


def post(port: int, ids: list[int], **headers: str) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/", json.dumps(ids).encode(), {"content-type": "application/json", **headers}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read())


def answers(server: Background, port: int, ids: list[int], **headers: str) -> Any:
    """The answer, as soon as the server is up."""
    found: list[Any] = []

    def try_it() -> bool:
        try:
            found.append(post(port, ids, **headers))
        except OSError:
            return False
        return True

    server.until(try_it)
    return found[0]


def test_a_server_of_the_standard_library_is_observed(
    run: Run, listening: Listening, tmp_path: Path, free_port: FreePort
) -> None:
    (tmp_path / "server.py").write_text(HTTP_SERVER)
    port = free_port()
    server = run(sys.executable, str(tmp_path / "server.py"), str(port), options=("--name", "shop"))
    said = answers(server, port, [5, 6, 7])
    listening.until(lambda: len(listening.frames) == NEW)
    assert [frame.token_id for frame in listening.frames] == said["ids"]
    assert all(frame.head_write is not None for frame in listening.frames)
    (replica,) = listening.replicas
    assert replica.hello.resource.service_name == "shop"
    assert int(replica.resource["process.pid"]) == said["pid"]
    assert said["pid"] == server.process.pid, "the command runs in the place of ours"
    server.signal(signal.SIGTERM)
    assert server.wait() == -signal.SIGTERM


def test_fastapi_tells_the_id_and_the_trace_of_its_requests(
    run: Run, listening: Listening, tmp_path: Path, free_port: FreePort
) -> None:
    (tmp_path / "app.py").write_text(FASTAPI)
    port = free_port()
    server = run(sys.executable, "-m", "uvicorn", "app:app", "--port", str(port))
    said = answers(
        server, port, [5, 6, 7], **{"X-Request-ID": "order-17", "traceparent": f"00-{TRACE}-{SPAN}-01"}
    )
    listening.until(lambda: len(listening.frames) == NEW)
    assert [frame.token_id for frame in listening.frames] == said["ids"]
    assert {(f.request_id, f.trace_id, f.span_id) for f in listening.frames} == {("order-17", TRACE, SPAN)}
    server.signal(signal.SIGINT)
    server.wait()


@pytest.mark.parametrize("preload", [True, False], ids=["forked", "loaded-by-each"])
def test_each_worker_of_gunicorn_is_a_replica(
    run: Run, listening: Listening, tmp_path: Path, free_port: FreePort, preload: bool
) -> None:
    (tmp_path / "shop.py").write_text(WSGI)
    port = free_port()
    server = run(
        sys.executable, "-m", "gunicorn", *(["--preload"] if preload else []), "--workers", "2",
        "--timeout", "120", "--bind", f"127.0.0.1:{port}", "shop:app",
    )  # fmt: skip
    said = [answers(server, port, [5, 6, 7])]
    with ThreadPoolExecutor(8) as pool:
        while len({one["pid"] for one in said}) < 2:
            said += pool.map(lambda i: post(port, [5, 6, 7 + i]), range(8))
            assert len(said) < 800
    listening.until(lambda: len(listening.frames) == NEW * len(said))
    by_process = {int(replica.resource["process.pid"]): replica for replica in listening.replicas}
    assert set(by_process) == {one["pid"] for one in said}
    assert len({replica.hello.resource.service_instance_id for replica in listening.replicas}) == 2
    for pid, replica in by_process.items():
        told = defaultdict(list)
        for frame in replica.frames:
            told[frame.request_id].append(frame.token_id)
        assert sorted(told.values()) == sorted(one["ids"] for one in said if one["pid"] == pid)
    server.signal(signal.SIGTERM)
    assert server.wait() == 0


def test_each_process_of_torchrun_is_a_replica(run: Run, listening: Listening, tmp_path: Path) -> None:
    (tmp_path / "each.py").write_text(LOADS + "print(answer([5, 6, 7 + int(os.environ['RANK'])]))\n")
    command = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    ended = run(sys.executable, *command, str(tmp_path / "each.py"))
    assert ended.wait() == 0, ended.err[-5:]
    listening.until(lambda: len(listening.frames) == 2 * NEW)
    told = [str([frame.token_id for frame in replica.frames]) for replica in listening.replicas]
    assert sorted(told) == sorted(ended.out)


def test_opentelemetry_instrument_does_the_same(
    stage: Stage, listening: Listening, model: Path, tmp_path: Path, free_port: FreePort
) -> None:
    (tmp_path / "server.py").write_text(HTTP_SERVER)
    port = free_port()
    tool = Path(sys.executable).with_name("opentelemetry-instrument")
    server = stage.start(
        str(tool), sys.executable, str(tmp_path / "server.py"), str(port),
        environment={
            "MODEL": str(model), "FULGURITE_ENDPOINT": listening.endpoint, "FULGURITE_TOKENS": "ids",
            "OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none",
        },
    )  # fmt: skip
    said = answers(server, port, [5, 6, 7])
    listening.until(lambda: len(listening.frames) == NEW)
    assert [frame.token_id for frame in listening.frames] == said["ids"]


def test_what_a_command_says_and_how_it_ends_is_its_own(run: Run) -> None:
    ended = run("sh", "-c", "echo here; echo there >&2; exit 7")
    assert ended.wait() == 7
    assert (ended.out, ended.err) == (["here"], ["there"])
    absent = run("no-such-program-at-all")
    assert absent.wait() == 127
    assert absent.err == ["fulgurite run: there is no program 'no-such-program-at-all' to run"]
    nothing = run()
    assert nothing.wait() == 2
    assert "name what to run" in nothing.err[0]
    wrong = run("true", options=("--deep-ratio", "7"))
    assert wrong.wait() == 2
    assert "deep_ratio must be between 0 and 1" in wrong.err[0]


def test_a_process_without_a_model_imports_nothing_of_ours_and_keeps_its_own_start(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import builtins; builtins.OWN_START = True\n")
    code = (
        "import sys; print(OWN_START, sorted(m for m in sys.modules if m.startswith('fulgurite')), "
        "[m for m in ('torch', 'grpc', 'numpy') if m in sys.modules])"
    )
    ended = run(sys.executable, "-c", code)
    assert ended.wait() == 0
    assert ended.out == ["True ['fulgurite_autostart'] []"]


def test_children_of_children_are_observed(run: Run, listening: Listening, tmp_path: Path) -> None:
    (tmp_path / "inner.py").write_text(LOADS + "print(answer([5, 6, 7]))\n")
    outer = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, sys.argv[1]]).returncode)"
    ended = run(sys.executable, "-c", outer, str(tmp_path / "inner.py"))
    assert ended.wait() == 0, ended.err[-5:]
    listening.until(lambda: len(listening.frames) == NEW)
    assert str([frame.token_id for frame in listening.frames]) == ended.out[0]


def test_a_python_without_fulgurite_says_so_in_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "transformers").mkdir()
    for name in ("__init__.py", "modeling_utils.py"):
        (tmp_path / "transformers" / name).write_text("")
    code = "import transformers.modeling_utils; print('goes on')"
    ended = run(sys.executable, "-S", "-c", "import sitecustomize;" + code)
    assert ended.wait() == 0
    assert ended.out == ["goes on"]
    assert ended.err == [
        f"fulgurite: models of this process are not observed: install fulgurite for {sys.executable}"
    ]
    assert os.environ.get("FULGURITE_RUN") is None
