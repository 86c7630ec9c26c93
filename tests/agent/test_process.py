"""The guest in real processes: exit, signals, forks, other threads. It never keeps the host from anything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]
OPENING = """
import os, signal, sys, threading, time
import torch
torch.set_num_threads(1)
from tests.agent.reference import BY_NAME, prompts
from fulgurite.agent import InMemoryExporter, instrument
model = BY_NAME["llama"].build()
options = {"max_new_tokens": 6, "do_sample": False}
"""
UNREACHABLE = 'agent = instrument(model, endpoint="127.0.0.1:9")\n'


def start(code: str, *, opening: str = "") -> subprocess.Popen[str]:
    """A process that runs `code` behind the opening, its failures our own to see."""
    return subprocess.Popen(
        [sys.executable, "-c", OPENING + opening + textwrap.dedent(code)],
        cwd=ROOT,
        env={**os.environ, "FULGURITE_STRICT": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """What it printed; it ended in time, with `code`, and without a word of trouble."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, err
    assert "Traceback" not in err, err
    return out


def said(process: subprocess.Popen[str], word: str) -> None:
    """Wait until it printed `word`."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == word:
            return
    raise AssertionError(process.communicate()[1])


def test_a_host_that_ends_without_a_word_ends_at_once() -> None:
    process = start(
        "model.generate(prompts(1, 5), **options)\nprint('done', flush=True)\n", opening=UNREACHABLE
    )
    said(process, "done")
    since = time.monotonic()
    finish(process)
    assert time.monotonic() - since < 30  # of which a loaded machine needs most


def test_a_host_that_ends_under_a_generating_thread_ends() -> None:
    process = start(
        """
        def forever():
            while True:
                model.generate(prompts(1, 5), **options)
        threading.Thread(target=forever, daemon=True).start()
        while agent.stats().captured < 20:
            time.sleep(0.01)
        """,
        opening=UNREACHABLE,
    )
    _, err = process.communicate(timeout=240)
    assert "fulgurite/agent" not in err  # what torch does to its own threads at exit is its own business


def test_a_signal_without_a_handler_ends_the_host_at_once() -> None:
    process = start(
        "print('on', flush=True)\nwhile True: model.generate(prompts(1, 5), **options)\n",
        opening=UNREACHABLE,
    )
    said(process, "on")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM


def test_a_handler_that_raises_passes_through_our_hooks() -> None:
    process = start(
        """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
        print('on', flush=True)
        while True:
            model.generate(prompts(1, 5), **options)
        """,
        opening=UNREACHABLE,
    )
    said(process, "on")
    time.sleep(0.3)  # somewhere in the middle of it
    process.send_signal(signal.SIGTERM)
    finish(process, code=3)


def test_an_interrupt_is_the_hosts_and_the_next_request_is_measured() -> None:
    process = start(
        """
        import transformers
        signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs have none
        exporter = InMemoryExporter()
        agent = instrument(model, exporter=exporter)
        class Interrupts(transformers.LogitsProcessor):
            def __call__(self, input_ids, scores):
                if input_ids.shape[1] == 7:
                    signal.raise_signal(signal.SIGINT)
                return scores
        try:
            model.generate(prompts(1, 5), logits_processor=[Interrupts()], **options)
        except KeyboardInterrupt:
            print("interrupted")
        model.generate(prompts(1, 5), **options)
        print([(event.kind, event.reason) for event in exporter.events])
        print(len(exporter.frames), agent.stats().errors)
        """
    )
    lines = finish(process).splitlines()
    events = "[('started', ''), ('aborted', 'KeyboardInterrupt'), ('started', ''), ('finished', 'length')]"
    assert lines == ["interrupted", events, "8 {}"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_measures_as_a_replica_of_its_own_though_a_lock_was_held() -> None:
    process = start(
        """
        exporter = InMemoryExporter()
        agent = instrument(model, exporter=exporter)
        wanted = model.generate(prompts(1, 5), **options)
        held, release = threading.Event(), threading.Event()
        def hold():
            with agent._capture._lock, agent._lock, agent._shield._lock, exporter._lock:
                held.set()
                release.wait()
        threading.Thread(target=hold).start()
        held.wait()
        child = os.fork()
        if child == 0:
            same = torch.equal(model.generate(prompts(1, 5), **options), wanted)
            agent.set_level("pulse")
            print("child", same, len(exporter.frames), exporter.resource["process.pid"] == str(os.getpid()))
            agent.close()
            sys.stdout.flush()
            os._exit(0)
        release.set()
        os.waitpid(child, 0)
        model.generate(prompts(1, 5), **options)
        print("parent", len(exporter.frames), exporter.resource["process.pid"] == str(os.getpid()))
        """
    )
    assert finish(process).splitlines() == ["child True 12 True", "parent 12 True"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_child_that_was_forked_by_a_sending_parent_ends_by_itself() -> None:
    process = start(
        """
        import multiprocessing
        agent = instrument(model, endpoint="127.0.0.1:9")
        model.generate(prompts(1, 5), **options)
        def work():
            model.generate(prompts(1, 5), **options)
            assert agent.stats().captured == 6, agent.stats()
        child = multiprocessing.get_context("fork").Process(target=work)
        child.start()
        child.join(40)
        print(child.exitcode, agent.stats().captured)
        """
    )
    assert finish(process).splitlines() == ["0 6"]


def test_a_spawned_child_gets_a_plain_model(tmp_path: Path) -> None:
    script = tmp_path / "spawn.py"
    script.write_text(
        OPENING
        + textwrap.dedent("""
        import multiprocessing
        def work(given, wanted, queue):
            kinds = [type(hook).__module__ for m in given.modules() for hook in m._forward_hooks.values()]
            ours = [kind for kind in kinds if kind.startswith("fulgurite")]
            queue.put((bool((given.generate(prompts(1, 5), **options) == wanted).all()), ours))
        if __name__ == "__main__":
            exporter = InMemoryExporter()
            agent = instrument(model, exporter=exporter)
            wanted = model.generate(prompts(1, 5), **options)
            context = multiprocessing.get_context("spawn")
            queue = context.Queue()
            child = context.Process(target=work, args=(model, wanted, queue))
            child.start()
            print(queue.get(timeout=60), len(exporter.frames))
            child.join(30)
        """)
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.splitlines() == ["(True, []) 6"], done.stderr
