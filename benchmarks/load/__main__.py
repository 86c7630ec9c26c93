"""`python -m benchmarks.load`: put a load on a collector; prints what became of it as one JSON object."""

from __future__ import annotations

import argparse
import json
import os

from benchmarks.load.generator import RECORDED, Plan, run
from benchmarks.load.shape import SHAPES


def main() -> None:
    """Generate what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("--collector", default="127.0.0.1:4747", metavar="HOST:PORT")
    parser.add_argument("--shape", default="W1", choices=(*SHAPES, RECORDED))
    parser.add_argument("--replicas", type=int, default=1, metavar="N")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--tokens-per-s", type=float, help="of each replica (default: as the shape says)")
    parser.add_argument("--batch-tokens", type=int, help="in a message (default: what comes in 4 ms)")
    parser.add_argument("--encoding", default="exact", choices=("exact", "compact"))
    parser.add_argument("--service", default="load", help="service.name of the replicas")
    options = parser.parse_args()
    plan = Plan(
        address=options.collector,
        shape=options.shape,
        replicas=options.replicas,
        seconds=options.seconds,
        tokens_per_s=options.tokens_per_s,
        batch_tokens=options.batch_tokens,
        encoding=options.encoding,
        service=options.service,
        token=os.environ.get("FULGURITE_TOKEN"),
    )
    print(json.dumps(run(plan)))


if __name__ == "__main__":
    main()
