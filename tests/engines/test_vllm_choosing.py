"""Plain ``vllm serve MODEL`` is to be observed: what vLLM would choose else is chosen for it, and no more.

No server: the configuration that an engine would get. The machine of the tests has no Triton, so that vLLM is
told that it has. vLLM is imported once; every case has a process of its own, forked from that.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import serving

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-engines has it")

from fulgurite.agent.engines.vllm.choosing import RUNNER, Choice, choice

PROGRAM = """
import json, os, sys
import vllm.config.vllm, vllm.triton_utils
vllm.config.vllm.HAS_TRITON = vllm.triton_utils.HAS_TRITON = True
from vllm.engine.arg_utils import EngineArgs
model, cases = sys.argv[1], json.loads(sys.argv[2])
for name, env in cases.items():
    print("CASE", name, flush=True)
    if os.fork():
        assert os.wait()[1] == 0, name
        continue
    os.environ.update(env)
    found = EngineArgs(model=model, max_model_len=128).create_engine_config()
    told = {"second": found.use_v2_model_runner, "ahead": found.scheduler_config.async_scheduling}
    print("FOUND", json.dumps({**told, "env": os.environ.get("VLLM_USE_V2_MODEL_RUNNER")}), flush=True)
    os._exit(0)
"""
OBSERVED = {"FULGURITE_ENDPOINT": "127.0.0.1:9", "FULGURITE_STRICT": "1"}
CASES = {
    "alone": {},
    "observed": OBSERVED,
    "chosen": {**OBSERVED, RUNNER: "1"},
    "off": {**OBSERVED, "FULGURITE_LEVEL": "off"},
}
LINE = "so that Fulgurite can observe it"


@pytest.fixture(scope="module")
def found(model: Path, tmp_path_factory: Any) -> dict[str, tuple[dict[str, Any], int]]:
    """By case: what the engine would be, and how often our line was said."""
    folder = str(tmp_path_factory.mktemp("configured"))
    settings = {"VLLM_CACHE_ROOT": folder, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(model), json.dumps(CASES)],
        env=serving.surroundings(**settings), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=500, check=True,
    )  # fmt: skip
    results = {}
    for part in said.stdout.split("CASE ")[1:]:
        (line,) = (one for one in part.splitlines() if one.startswith("FOUND "))
        results[part.split()[0]] = (json.loads(line.removeprefix("FOUND ")), part.count(LINE))
    return results


def test_the_first_runner_is_chosen_where_the_user_chose_none(found: dict[str, Any]) -> None:
    alone, _ = found["alone"]
    assert alone["second"], "vLLM would not take its second runner here: there is nothing to choose"
    assert found["observed"] == ({**alone, "second": False, "env": "0"}, 1)


def test_what_the_user_chose_stays(found: dict[str, Any]) -> None:
    assert found["chosen"] == ({**found["alone"][0], "env": "1"}, 0)
    assert found["off"] == found["alone"]


def test_scheduling_ahead_is_left_out_where_the_user_did_not_ask_for_it() -> None:
    assert choice({}, async_scheduling=None, has_triton=False, is_cpu=False) == Choice(
        runner=False, in_step=True
    )
    assert not choice({}, async_scheduling=True, has_triton=False, is_cpu=False)
    assert not choice({}, async_scheduling=False, has_triton=False, is_cpu=False)
    assert not choice({}, async_scheduling=None, has_triton=False, is_cpu=True)
