"""Ray Serve under `fulgurite run`: each of its replicas is one of ours, without a line of code changed."""

from __future__ import annotations

import json
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray.serve", reason="Ray is not installed")

import serving

APP = """
import os, sys, time, ray
from ray import serve

@serve.deployment(num_replicas=2, ray_actor_options={"num_cpus": 0})
class Shop:
    def __init__(self):
        import torch
        from transformers import AutoModelForCausalLM
        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(os.environ["MODEL"]).eval()

    async def __call__(self, request):
        import torch
        ids = await request.json()
        with torch.inference_mode():
            out = self.model.generate(torch.tensor([ids]), max_length=len(ids) + 6, do_sample=False)
        return {"ids": out[0, len(ids):].tolist(), "pid": os.getpid()}

ray.init(num_cpus=2, include_dashboard=False, _temp_dir=sys.argv[2])
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
serve.run(Shop.bind())
while True:
    time.sleep(1)
"""


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short name: Ray's sockets are in it."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as found:
        yield Path(found)


def post(port: int, ids: list[int]) -> Any:
    """One answer."""
    body, kind = json.dumps(ids).encode(), {"content-type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", body, kind)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_each_replica_of_ray_serve_is_one_of_ours(model: Path, tmp_path: Path, short: Path) -> None:
    (tmp_path / "shop.py").write_text(APP)
    port = serving.free_port()
    with serving.collector(tmp_path) as (_, to):
        watcher = serving.Watcher(to)
        command = [
            str(serving.BIN / "fulgurite"), "run", "--collector", f"127.0.0.1:{to}", "--tokens", "ids",
            "--budget", "none", "--", sys.executable, str(tmp_path / "shop.py"), str(port), str(short),
        ]  # fmt: skip
        env = serving.surroundings(MODEL=str(model), RAY_USAGE_STATS_ENABLED="0")
        server = serving.Process(tmp_path / "ray.log", *command, env=env)
        try:
            said = [serving.first_of(lambda: post(port, [5, 6, 7]), server)]
            with ThreadPoolExecutor(4) as pool:
                while len({one["pid"] for one in said}) < 2:
                    said += pool.map(lambda i: post(port, [5, 6, 7 + i]), range(8))
                    assert len(said) < 800
            watcher.until(lambda: len(watcher.frames) >= sum(len(one["ids"]) for one in said))
        finally:
            server.stop()
            watcher.stop()
    told = sorted([frame.token_id for frame in frames] for frames in watcher.by_request().values())
    assert told == sorted(one["ids"] for one in said)
    assert len(watcher.topologies) == 2, "a replica for each process that answers"
    assert all(frame.head_write is not None for frame in watcher.frames)
