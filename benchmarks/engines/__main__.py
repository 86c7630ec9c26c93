"""`build/engines/bin/python -m benchmarks.engines`: vLLM with and without us, interleaved.

Three servers of the same model run side by side: without us, without us again (the control: what differs
there is noise), and observed at `heads` with a collector that somebody watches. Rounds go in
turn, in changing order. Needs the environment of `make test-engines`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "engines"))

from benchmarks.conditions import conditions  # noqa: E402
from benchmarks.engines import load  # noqa: E402

TOKENS = 48
SHAPE = {
    "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 64, "initializer_range": 0.05,
}  # fmt: skip


def quantile(values: list[float], share: float) -> float:
    """In milliseconds."""
    ordered = sorted(values)
    return 1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def summary(loads: list[load.Load]) -> dict[str, float]:
    """Of one variant at one concurrency: the median round, and quantiles over all."""
    first = [v for one in loads for v in one.first_s]
    between = [v for one in loads for v in one.between_s]
    return {
        "requests_per_s": statistics.median(one.requests / one.wall_s for one in loads),
        "ttft_p50_ms": quantile(first, 0.5),
        "ttft_p99_ms": quantile(first, 0.99),
        "inter_token_p50_ms": quantile(between, 0.5),
        "inter_token_p99_ms": quantile(between, 0.99),
    }


def paired(base: list[load.Load], other: list[load.Load]) -> dict[str, float]:
    """How much longer rounds of `other` took than those beside them, in percent: median and quartiles."""
    gains = sorted(100 * (b.wall_s / a.wall_s - 1) for a, b in zip(base, other, strict=True))
    low, middle, high = statistics.quantiles(gains, n=4) if len(gains) > 1 else gains * 3
    return {"median_percent": middle, "quartiles_percent": [low, high]}  # type: ignore[dict-item]


def measure(rounds: int, levels: tuple[int, ...], arguments: tuple[str, ...], log: Any) -> dict[str, Any]:
    """Start the servers and run the rounds."""
    serving: Any = importlib.import_module("serving")
    tiny_model: Any = importlib.import_module("tiny_model")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fulgurite-engines-")))
        model = tiny_model.make(folder / "model", **SHAPE)
        shared = ("--dtype", "bfloat16", *arguments)
        urls = {}
        for name in ("without", "control"):
            (folder / name).mkdir()
            urls[name] = stack.enter_context(serving.vllm(folder / name, model, *shared, env={})).url
        observed = stack.enter_context(
            serving.stage(folder / "heads", model, *shared, FULGURITE_LEVEL="heads", FULGURITE_TOKENS="off")
        )
        urls["heads"] = observed.server.url
        found: dict[str, dict[int, list[load.Load]]] = {name: {n: [] for n in levels} for name in urls}
        for number in range(-1, rounds):
            for at_once in levels:
                names = list(urls) if number % 2 else list(reversed(urls))
                for name in names:
                    seed = 1000 * (number + 1) + 100 * at_once
                    requests = max(4, 2 * at_once)
                    one = load.run(urls[name], requests=requests, at_once=at_once, tokens=TOKENS, seed=seed)
                    if number >= 0:
                        found[name][at_once].append(one)
            log(f"round {number + 1} of {rounds}")
        account = observed.account()
    rows = []
    for at_once in levels:
        row: dict[str, Any] = {"at_once": at_once}
        for name in urls:
            row[name] = summary(found[name][at_once])
        row["control_against_without"] = paired(found["without"][at_once], found["control"][at_once])
        row["heads_against_without"] = paired(found["without"][at_once], found["heads"][at_once])
        rows.append(row)
    frames = {"captured": account.captured, "acknowledged": account.acknowledged, "dropped":
              dict(account.dropped), "overhead_ratio": account.overhead_ratio}  # fmt: skip
    return {
        "arguments": list(shared),
        "tokens": TOKENS,
        "shape": SHAPE,
        "rounds": rounds,
        "rows": rows,
        "agent": frames,
    }


def main() -> None:
    """Run it and keep what it found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--eager", action="store_true", help="without compiling")
    parser.add_argument("--out", type=Path, help="where to keep the record")
    options = parser.parse_args()
    before = conditions()
    arguments = ("--enforce-eager",) if options.eager else ()
    found = measure(options.rounds, tuple(options.at_once), arguments, lambda line: print(line, flush=True))
    record = {"benchmark": "engines", "about": __doc__, "conditions": before, **found}
    text = json.dumps(record, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
