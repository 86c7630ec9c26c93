"""The files of deploy/: valid by their schemas, and their command lines are ones that our programs take."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="needs PyYAML (the extra: dev)")

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deploy/compose/compose.yml"
MANIFESTS = sorted((ROOT / "deploy/kubernetes").glob("*.yaml"))
KUBERNETES = "1.33"


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def compose() -> dict[str, Any]:
    (document,) = documents(COMPOSE)
    return document


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_are_valid(path: Path) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate (the extra: dev)")
    found = documents(path)
    assert found
    for document in found:
        validate.validate(document, KUBERNETES, strict=True)


def containers() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    for path in MANIFESTS:
        for document in documents(path):
            spec = document.get("spec", {}).get("template", {}).get("spec")
            for container in (spec or {}).get("containers", ()):
                yield path.name, spec, container


def test_ours_run_without_privileges_and_with_limits() -> None:
    ours = [c for _, _, c in containers() if c["image"].startswith("fulgurite-")]
    assert len(ours) == 3
    for container in ours:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]
        assert "readinessProbe" in container


def test_what_is_mounted_is_a_volume_and_ports_have_names() -> None:
    for name, spec, container in containers():
        volumes = {volume["name"] for volume in spec.get("volumes", ())} | {"data"}
        assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes, name


def test_secrets_are_never_values() -> None:
    for name, _, container in containers():
        for variable in container.get("env", ()):
            if re.search("TOKEN|REDIS|PASSWORD|SECRET", variable["name"]):
                assert "valueFrom" in variable, f"{name}: {variable['name']}"


def command_lines() -> list[tuple[str, list[str]]]:
    """Every command line for `fulgurite` in these files."""
    found = [(f"compose {name}", service["command"]) for name, service in compose()["services"].items()
             if name in ("collector", "telemetry", "viewer", "replica")]  # fmt: skip
    found += [
        (name, [str(word) for word in container["args"]])
        for name, _, container in containers()
        if container["image"].startswith("fulgurite-")
    ]
    return found


@pytest.mark.parametrize(("where", "words"), command_lines(), ids=[where for where, _ in command_lines()])
def test_every_command_line_is_taken(where: str, words: list[str], tmp_path: Path) -> None:
    if where == "compose replica":
        from fulgurite.cli.demo.replica import parser as replica

        assert replica().parse_args(words).endpoint == "collector:4747"
        return
    command, *arguments = words
    if command == "collector":
        from fulgurite.collector.options import parse

        # The files that a secret would bring need not be there to see that the words are understood.
        kept = [word for word in arguments if not word.startswith(("--credentials=", "--tls-"))]
        settings = parse([*kept, *([] if "--insecure" in kept else ["--insecure"])], {})
        assert str(settings.listen) == "0.0.0.0:4747"
    elif command == "telemetry":
        import argparse

        from fulgurite.collector.telemetry import options

        parser = argparse.ArgumentParser()
        parser.add_argument("--redis")
        options.add_arguments(parser)
        given = vars(parser.parse_args(arguments))
        assert options.settings_of(given, {}).has_work({})
    else:
        from fulgurite.viewer.config import parser as viewer

        assert command == "view"
        assert viewer({}).parse_args(arguments).listen


def test_compose_names_only_what_is_there() -> None:
    document = compose()
    services = set(document["services"])
    for name, service in document["services"].items():
        assert set(service.get("networks", ())) <= set(document["networks"]), name
        assert set(service.get("depends_on", ())) <= services, name
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            is_there = source in document["volumes"] or (COMPOSE.parent / source).exists()
            assert is_there, f"{name} mounts {source}"
        build = service.get("build")
        if build:
            dockerfile = (COMPOSE.parent / build["context"] / build["dockerfile"]).resolve()
            assert re.search(rf"^FROM \S+ AS {build['target']}$", dockerfile.read_text(), re.MULTILINE)
        for published in service.get("ports", ()):
            assert published.startswith("127.0.0.1:"), f"{name} is published beyond this machine"


def test_the_dashboards_are_those_of_the_script() -> None:
    import importlib.util
    import json

    spec = importlib.util.spec_from_file_location("dashboards", ROOT / "scripts/dashboards.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["dashboards"] = module
    spec.loader.exec_module(module)
    for name, document in module.DASHBOARDS.items():
        kept = json.loads((ROOT / f"deploy/grafana/dashboards/{name}.json").read_text())
        assert kept == json.loads(json.dumps(document)), "run: python scripts/dashboards.py"
        titles = [panel["title"] for panel in kept["panels"]]
        assert len(titles) == len(set(titles))
        assert all(panel["fieldConfig"]["defaults"]["links"] for panel in kept["panels"])


def test_every_metric_of_the_dashboards_and_rules_is_one_of_ours() -> None:
    from fulgurite.telemetry.names import METRICS, OWN_METRICS, prometheus_name

    endings = {
        "counter": ("_total",),
        "histogram": ("_bucket", "_sum", "_count"),
        "moments": ("_sum", "_count"),
    }
    ours = {
        prometheus_name(metric) + ending
        for metric in (*METRICS, *OWN_METRICS)
        for ending in endings.get(metric.kind, ("",))
    }
    texts = [(ROOT / "deploy/prometheus/rules.yml").read_text()]
    texts += [path.read_text() for path in (ROOT / "deploy/grafana/dashboards").glob("*.json")]
    used = {name for text in texts for name in re.findall(r"\b(?:fulgurite|gen_ai)_[a-z_]+(?=[\[{) ])", text)}
    assert used
    assert {name for name in used if name not in ours and name != "gen_ai_request_model"} == set()
