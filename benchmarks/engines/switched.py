"""What watching one vLLM server costs its users, over HTTP: switched on and off while it runs.

Two servers of the same model and the same settings differ by as much as 10 % on this kind of machine, for as
long as they are up, so what a few percent are cannot be told by comparing servers (`engines` does, and shows
it). Here one server is asked in turn, in changing order, while it is switched off by `fulgurite control
--level off`, switched off again (the control: what differs there is noise), observed at `heads` while nobody
watches (the collector keeps whole frames of 1 request in 16, and sketches of all), and observed at `heads`
while a viewer watches. What it costs to have the agent in the server at all, switched off, is not in it: the
scheduling that it needs, and what its graphs leave behind for it.

Ratios are medians of pairs of one round, with 95 % bootstrap intervals. `server CPU` is what all threads of
all processes of the server used. Collector and viewer are processes of their own on the same machine.
Streamed completions of 48 tokens, so many at once. That a state was what it was to be is seen from the
agent's account: nothing captured, some and the others folded, or all captured.

``python -m benchmarks engines_switched`` runs it in the environment that `make test-engines` builds: about 25
minutes, on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.conditions import conditions
from benchmarks.engines import load, parts
from benchmarks.interleave import Ratio, interleave, ratio
from benchmarks.page import table
from fulgurite.cli.address import Address
from fulgurite.cli.client import Collector

OFF, AGAIN, UNWATCHED, WATCHED = "off", "off again", "heads, nobody watches", "heads, watched"
STATES = (OFF, AGAIN, UNWATCHED, WATCHED)
ABOUT = (__doc__ or "").partition("\n\n``")[0].strip()
SWITCHES_S = 20.0


@dataclass(slots=True)
class Window:
    """One state for as long as one load lasts.

    Attributes
    ----------
    server_cpu_s, beside_cpu_s : of the server's processes; of the collector's and the viewer's.
    captured, folded : tokens, by the agent's account.
    """

    load: load.Load
    server_cpu_s: float
    beside_cpu_s: float
    captured: int
    folded: int


@dataclass(slots=True)
class Stage:
    """One server that is observed, and what switches it."""

    server: Any
    collector: Any
    port: int
    folder: Path
    seed: int = 0
    viewer: ExitStack = field(default_factory=ExitStack)
    watching: Any = None

    def account(self) -> Any:
        """What the agent last said of itself."""
        with Collector(Address("127.0.0.1", self.port)) as line:
            (replica,) = line.replicas().replicas
            return replica.agent

    def switch(self, state: str) -> None:
        """Bring a state about, and wait until the agent does as it is told."""
        with Collector(Address("127.0.0.1", self.port)) as line:
            line.control(["*"], level="off" if state in (OFF, AGAIN) else "")
        if state != WATCHED:
            self.viewer.close()
            self.watching = None
        elif self.watching is None:
            self.watching = self.viewer.enter_context(parts.viewing(self.folder, self.port))
        limit = time.monotonic() + SWITCHES_S
        while not self._is_in(state):
            if time.monotonic() > limit:
                raise RuntimeError(f"{state!r} did not come about: {self.account()}")

    def _is_in(self, state: str) -> bool:
        """Whether the tokens of a request are taken as they are in `state`."""
        before = self._settled()
        self._asked(requests=2, at_once=2, tokens=4)
        after = self._settled()
        captured, folded = after.captured - before.captured, after.folded - before.folded
        if state in (OFF, AGAIN):
            return not captured and not folded
        return captured + folded == 8 and (state == UNWATCHED or not folded)

    def _settled(self) -> Any:
        """The agent's account when it changes no more."""
        found, said = None, self.account()
        while found is None or (found.captured, found.folded) != (said.captured, said.folded):
            time.sleep(1.2)  # it says how it is once a second
            found, said = said, self.account()
        return said

    def _asked(self, *, requests: int, at_once: int, tokens: int) -> load.Load:
        self.seed += 1000
        return load.run(self.server.url, requests=requests, at_once=at_once, tokens=tokens, seed=self.seed)

    def window(self, state: str, at_once: int) -> Window:
        """One load in one state."""
        self.switch(state)
        before, used, beside = self._settled(), parts.cpu_s(self.server.process), self._beside_s()
        requests = max(4, 2 * at_once)
        found = self._asked(requests=requests, at_once=at_once, tokens=parts.TOKENS)
        server_cpu_s = parts.cpu_s(self.server.process) - used
        beside_cpu_s = self._beside_s() - beside
        after = self._settled()
        captured, folded = after.captured - before.captured, after.folded - before.folded
        wanted = 0 if state in (OFF, AGAIN) else requests * parts.TOKENS
        if captured + folded != wanted or (state == WATCHED and folded):
            raise RuntimeError(f"{state!r}: {captured} tokens captured and {folded} folded, of {wanted}")
        return Window(found, server_cpu_s, beside_cpu_s, captured, folded)

    def _beside_s(self) -> float:
        processes = [self.collector, *([] if self.watching is None else [self.watching])]
        return sum(map(parts.cpu_s, processes))


def row(state: str, at_once: int, found: dict[str, list[Window]]) -> dict[str, Any]:
    """Of one state at one concurrency."""
    windows, base, again = found[state], found[OFF], found[AGAIN]

    def compared(of: Callable[[Window], float], other: list[Window] = windows) -> Ratio:
        return ratio([of(one) for one in other], [of(one) for one in base])

    def between(share: float) -> Callable[[Window], float]:
        return lambda one: parts.quantile(one.load.between_s, share)

    def taken(one: Window) -> float:
        return one.load.wall_s

    def used(one: Window) -> float:
        return one.server_cpu_s

    tokens = sum(one.load.requests for one in windows) * parts.TOKENS
    time_taken, cpu_used = compared(taken), compared(used)
    firsts = [value for one in windows for value in one.load.first_s]
    return {
        "state": state,
        "at once": at_once,
        "requests/s": round(statistics.median(one.load.requests / one.load.wall_s for one in windows), 2),
        "time": str(time_taken),
        "verdict": "base" if state == OFF else time_taken.verdict(compared(taken, again)),
        "first token p50 ms": parts.quantile(firsts, 0.5),
        "first token p99 ms": parts.quantile(firsts, 0.99),
        "between tokens p50": str(compared(between(0.5))),
        "between tokens p99": str(compared(between(0.99))),
        "server CPU": str(cpu_used),
        "server CPU verdict": "base" if state == OFF else cpu_used.verdict(compared(used, again)),
        "server CPU ms per token": round(1e3 * sum(one.server_cpu_s for one in windows) / tokens, 2),
        "collector and viewer CPU ms per token": round(
            1e3 * sum(one.beside_cpu_s for one in windows) / tokens, 3
        ),
        "captured": sum(one.captured for one in windows),
        "folded": sum(one.folded for one in windows),
        "rounds": len(windows),
    }


def measure(
    shape: dict[str, Any], arguments: tuple[str, ...], rounds: int, concurrencies: tuple[int, ...]
) -> list[dict[str, Any]]:
    """Start the server and switch it."""
    serving, tiny_model = parts.of_the_tests("serving"), parts.of_the_tests("tiny_model")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fulgurite-engines-")))
        model = tiny_model.make(folder / "model", **shape)
        collector, port = stack.enter_context(serving.collector(folder, history="heads/16"))
        env = {**parts.observing(port), **parts.AS_PEOPLE_RUN_IT}
        server = stack.enter_context(serving.vllm(folder, model, *arguments, env=env))
        print("the server is up", flush=True)
        viewer = stack.enter_context(ExitStack())
        stage = Stage(server, collector, port, folder, viewer=viewer)
        for at_once in concurrencies:  # the first pass of each size, and the link to the collector
            load.run(server.url, requests=2 * at_once, at_once=at_once, tokens=8, seed=at_once)
        serving.until(lambda: stage.account().captured + stage.account().folded)
        rows = []
        for at_once in concurrencies:
            acts = {state: partial(stage.window, state, at_once) for state in STATES}
            found = interleave(acts, rounds=rounds, seed=at_once)
            rows += [row(state, at_once, found) for state in STATES]
            print(table(rows[-len(STATES) :]), flush=True)
        return rows


def main() -> None:
    """Run it, print the table, and keep what it found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines.switched", description=__doc__)
    parser.add_argument("--rounds", type=int, help="default 8; 1 with --quick")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--quick", action="store_true", help="a small model, not compiled, one round")
    parser.add_argument("--out", type=Path, help="where to keep the record")
    options = parser.parse_args()
    quick = bool(options.quick)
    ((name, shape),) = ({"3 M": {}} if quick else parts.SHAPES).items()
    rounds = options.rounds or (1 if quick else 8)
    before = conditions()
    arguments = ("--dtype", options.dtype, *(("--enforce-eager",) if quick else ()))
    rows = measure(shape, arguments, rounds, tuple(options.at_once))
    record: dict[str, Any] = {
        "benchmark": "engines_switched", "quick": quick, "about": ABOUT, "conditions": before,
        "model": f"Llama of {name} parameters, random weights, {'not ' if quick else ''}compiled, "
        f"{options.dtype}", "peers": {"vLLM": version("vllm")}, "tokens": parts.TOKENS, "rounds": rounds,
        "rows": rows,
    }  # fmt: skip
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
