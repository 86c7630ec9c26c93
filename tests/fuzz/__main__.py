"""The full fuzzing run: coverage-guided by atheris, from valid seeds, each target in a process of its own.

pip install atheris && python -m tests.fuzz --runs 1000000
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WARM_UP = 0.1
"""The share of the runs after which memory is compared: caches are full by then."""


def main() -> int:
    """Run it. 1 where a target failed."""
    given = _parser().parse_args()
    if given.target:
        return _fuzz(given.target, given.runs, given.seed)
    from tests.fuzz.targets import targets

    failed = 0
    results = []
    for target in targets():
        if given.only and given.only not in target.name:
            continue
        command = [sys.executable, "-m", "tests.fuzz", "--target", target.name]
        command += ["--runs", str(given.runs), "--seed", str(given.seed)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        told = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode or not told:
            failed += 1
            print(f"{target.name:24s} FAILED\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}", flush=True)
            continue
        result = json.loads(told[-1])
        results.append(result)
        print(
            f"{target.name:24s} {result['messages']:9d} messages in {result['seconds']:6.1f} s, "
            f"{result['taken']:8d} taken, memory {result['warm_mib']:6.1f} -> {result['end_mib']:6.1f} MiB, "
            f"corpus {result['corpus']}",
            flush=True,
        )
    if given.out:
        given.out.write_text(json.dumps(results, indent=1))
    return int(failed > 0)


def _fuzz(name: str, runs: int, seed: int) -> int:
    try:
        import atheris
    except ImportError:
        print("fuzz: atheris is not installed: pip install atheris", file=sys.stderr)
        return 2
    with atheris.instrument_imports(include=["fulgurite"], enable_loader_override=False):
        from tests.fuzz.targets import targets

        target: Any = next(target for target in targets() if target.name == name)
    from tests.fuzz.mutate import mutated

    counts = {"messages": 0, "taken": 0}
    memory = {"warm": 0.0}
    began_s = time.monotonic()
    corpus = Path(tempfile.mkdtemp(prefix="fulgurite-fuzz-"))
    for index, data in enumerate(target.seeds):
        (corpus / f"seed-{index}").write_bytes(data)

    def one(data: bytes) -> None:
        counts["messages"] += 1
        counts["taken"] += target(data)
        if counts["messages"] == int(runs * WARM_UP):
            memory["warm"] = _resident_mib()
        if counts["messages"] == runs:
            print(
                json.dumps(
                    {
                        "target": name,
                        **counts,
                        "seconds": time.monotonic() - began_s,
                        "warm_mib": memory["warm"],
                        "end_mib": _resident_mib(),
                        "corpus": len(list(corpus.iterdir())),
                    }
                ),
                flush=True,
            )

    def hostile(data: bytes, most: int, given: int) -> bytes:
        if given % 4 == 0:
            return bytes(atheris.Mutate(data, most))
        return mutated(data, target.kind, random.Random(given))[:most]

    atheris.Setup(
        [
            sys.argv[0],
            str(corpus),
            f"-runs={runs + 10}",
            f"-seed={seed + 1}",
            "-max_len=65536",
            "-rss_limit_mb=2048",
        ],
        one,
        custom_mutator=hostile,
    )
    atheris.Fuzz()
    return 0


def _resident_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return float("nan")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=1_000_000, help="messages for each target")
    parser.add_argument("--only", default="", help="targets with this in their names")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="results, as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
