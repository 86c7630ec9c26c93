"""`make bench`: run the benchmarks, print their tables, keep them with their conditions in `benchmarks/results/`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.conditions import conditions

RESULTS = Path(__file__).parent / "results"
NAMES = ("wire", "decode", "latency")


def _measure(name: str, *, quick: bool) -> list[dict[str, Any]]:
    if name == "decode":
        from benchmarks import decode

        return decode.run(rounds=5 if quick else 25)
    if name == "latency":
        from benchmarks import latency

        return latency.run(seconds=5 if quick else 20)
    from benchmarks import wire

    return wire.run()


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(str(row.get(name, "")) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def main() -> None:
    """Run what was named, all by default."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--quick", action="store_true", help="short runs, not kept")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in NAMES]
    if unknown:
        parser.error(f"no benchmark named {unknown[0]}: choose from {', '.join(NAMES)}")
    for name in options.names or NAMES:
        before = conditions()
        rows = _measure(name, quick=options.quick)
        print(f"\n## {name}\n\n{markdown(rows)}\n")
        if not options.quick:
            record = {"benchmark": name, "conditions": before, "rows": rows}
            (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
