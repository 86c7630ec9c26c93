"""`make bench`: run benchmarks, print their tables, keep them with their conditions, write the page."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import page
from benchmarks.conditions import conditions

DEFAULT = ("wire", "decode", "latency")
NAMES = (
    *DEFAULT,
    "otlp",
    "overhead",
    "overhead_large",
    "budget",
    "sweep",
    "instructions",
    "pipeline",
    "webpage",
    "viewer",
    "engines",
    "engines_switched",
)
OUT = Path(__file__).parent / "out"
ENGINES = {"engines": "benchmarks.engines", "engines_switched": "benchmarks.engines.switched"}
"""Those that run in the environment of the serving engines, and their modules."""

LENGTHS_S = {"wire": (2, 4), "otlp": (2, 5), "budget": (5, 45)}  # quick, and to be kept
ROUNDS = {"quick": 5, "full": 25}


def measure(name: str, *, quick: bool, model: str | None, out: Path, only: Sequence[str]) -> dict[str, Any]:
    """Run one benchmark; its record."""
    if name in ENGINES:
        from benchmarks.engines import apart

        return apart.run(ENGINES[name], quick=quick)
    before = conditions()
    if name in ("overhead", "overhead_large", "sweep"):
        from benchmarks.overhead import run

        if name == "sweep":
            found = run.sweep(quick=quick, out=out)
        else:
            found = (run.overhead if name == "overhead" else run.overhead_large)(quick=quick)
    elif name == "instructions":
        from benchmarks.overhead.instructions import instructions

        found = instructions(quick=quick)
    elif name == "pipeline":
        from benchmarks.pipeline.run import pipeline

        found = pipeline(quick=quick, out=out, only=only)
    elif name == "viewer":
        from benchmarks.viewer import run as viewer

        rows = viewer.run(quick=quick)
        found = {"about": (viewer.__doc__ or "").strip(), "model": "none: synthetic streams", "rows": rows}
    else:
        module: Any = importlib.import_module(f"benchmarks.{name}")
        length = {"rounds": ROUNDS["quick" if quick else "full"]}
        if name != "decode":
            length = {"seconds": LENGTHS_S.get(name, (5, 20))[not quick]}
        about = (module.__doc__ or "").strip()
        found = {"about": about, "model": model or "bundled", "rows": module.run(**length, model=model)}
    return {"benchmark": name, "quick": quick, "conditions": before, **found}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NAMES)}; {', '.join(DEFAULT)} by default")
    parser.add_argument("--quick", action="store_true", help=f"short runs, kept in {OUT.name}/ only")
    parser.add_argument("--model", help="a transformers model in place of the bundled one; kept in out/ only")
    parser.add_argument("--page", action="store_true", help="only write README.md from the kept results")
    parser.add_argument("--only", action="append", default=[], help="a part of `pipeline`; the others stay")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in NAMES]
    if unknown:
        parser.error(f"no benchmark named {unknown[0]}: choose from {', '.join(NAMES)}")
    return options


def main() -> None:
    """Run what was named."""
    options = _options()
    kept = not options.quick and options.model is None
    out = page.RESULTS if kept else OUT
    out.mkdir(exist_ok=True)
    for name in () if options.page else options.names or DEFAULT:
        try:
            record = measure(name, quick=options.quick, model=options.model, out=out, only=options.only)
        except ValueError as error:
            raise SystemExit(str(error)) from None
        print(f"\n## {name}\n\n{page.table(record['rows'])}\n", flush=True)
        (out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if kept or options.page:
        page.write()


if __name__ == "__main__":
    main()
