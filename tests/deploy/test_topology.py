"""The topology of the compose file as processes on this machine: the same command lines, on loopback."""

from __future__ import annotations

import json
import shutil
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.system.conftest import Stage

yaml = pytest.importorskip("yaml", reason="needs PyYAML (the extra: dev)")
pytest.importorskip("torch", reason="needs the extra: model")

from tests.deploy.test_files import COMPOSE, ROOT, compose  # noqa: E402
from tests.telemetry.fleet import port  # noqa: E402
from tests.telemetry.receiver import grpc_receiver  # noqa: E402

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not shutil.which("redis-server"), reason="needs the Debian package redis-server"),
    pytest.mark.skipif(not shutil.which("prometheus"), reason="needs the Debian package prometheus"),
]


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.clear()


def local(words: list[str], places: dict[str, str]) -> list[str]:
    """A command line with this machine's addresses in place of the services'."""
    text = "\n".join(words)
    for name, address in places.items():
        text = text.replace(name, address)
    return text.split("\n")


def test_the_services_work_together(stage: Stage, tmp_path: Path) -> None:
    services = compose()["services"]
    with grpc_receiver() as (endpoint, kept):
        redis = port()
        places = {
            "redis://redis:6379": f"redis://127.0.0.1:{redis}",
            "0.0.0.0:4747": f"127.0.0.1:{port()}",
            "0.0.0.0:9747": f"127.0.0.1:{port()}",
            "0.0.0.0:8747": f"127.0.0.1:{port()}",
            "http://otel:4317": endpoint,
        }
        places["collector:4747"] = places["0.0.0.0:4747"]
        places["telemetry:9747"] = places["0.0.0.0:9747"]
        command = [*services["redis"]["command"], "--port", str(redis), "--dir", str(tmp_path)]
        stage.start(*command, "--bind", "127.0.0.1").says("eady to accept connections")
        stage.fulgurite(*local(services["collector"]["command"], places)).says("listening on")
        stage.fulgurite(*local(services["telemetry"]["command"], places)).says("metrics at")
        environment = dict(services["replica"]["environment"])
        stage.python(
            "-m",
            "fulgurite.cli.demo.replica",
            *local(services["replica"]["command"], places),
            environment=environment,
        )
        viewer = stage.fulgurite(*local(services["viewer"]["command"], places))
        config = tmp_path / "prometheus.yml"
        text = (COMPOSE.parent / "prometheus.yml").read_text().replace("10s", "1s")
        text = text.replace("[rules.yml]", f"['{ROOT / 'deploy/prometheus/rules.yml'}']")
        config.write_text(text.replace("telemetry:9747", places["telemetry:9747"]))
        web = f"127.0.0.1:{port()}"
        prometheus = stage.start(
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={tmp_path / 'tsdb'}",
            f"--web.listen-address={web}",
        )
        query = 'fulgurite_tokens_total{service_name="stories",service_namespace="demo"} > 0'
        prometheus.until(lambda: asked(web, query), 120.0)
        kept.until(lambda: kept.spans, 120.0)
        resource, span = kept.spans[0]
        assert resource["service.name"] == "stories"
        assert span.name.startswith("text_completion ")
        viewer.until(lambda: page(places["0.0.0.0:8747"]), 60.0)


def asked(web: str, query: str) -> bool:
    try:
        with urllib.request.urlopen(
            f"http://{web}/api/v1/query?query={urllib.parse.quote(query)}", timeout=5.0
        ) as answer:
            return bool(json.load(answer)["data"]["result"])
    except OSError:
        return False


def page(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/", timeout=5.0) as answer:
            return answer.status == 200 and b"<html" in answer.read().lower()
    except OSError:
        time.sleep(0.2)
        return False
