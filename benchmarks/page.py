"""Writes `benchmarks/README.md` from the kept results: no figure on that page is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
PAGE = FOLDER / "README.md"

HEAD = """\
# Benchmarks

Ours beside peers, in one run. `make bench` measures and writes this page from `results/*.json`; do not edit
it.

- Variants are **interleaved**: each once a round, in a new random order, so that drift of the machine hits
  all.
- Ratios are **medians** of the paired ratios to `off` of the same round, with the 95 % bootstrap interval.
- `off again` is the **A/A control**: the same thing measured twice. A difference that its interval may
  hide, or whose own interval holds 1, is called `unresolved`, whichever way it points; so is any of fewer
  than six rounds, of which an interval says too little.
- Frames go to a real collector process with its embedded server *on the same machine*, which competes for it.

`make bench` runs `wire`, `decode` and `latency` (some minutes). `make bench ARGS="overhead sweep"`
measures the agent on a Llama of more than 100 M parameters beside its peers, and its cost along five axes
(about half an hour on a machine that does nothing else), `ARGS=overhead_large` on one of 1.1 billion (as
long); `ARGS=instructions` counts the
agent's instructions under valgrind (some minutes, on any machine). `make bench-pipeline` measures
the way from an agent to a viewer (a quarter of an hour, on a machine that does nothing else);
`ARGS="--only latency"` measures one part of it again. `make bench ARGS=engines` measures vLLM over HTTP
with and without us (40 minutes, in the environment of `make test-engines`), `ARGS=engines_switched` one vLLM
server that is switched on and off in turn (half an hour). `--quick` makes any of them short; such figures
go to `benchmarks/out/` and are not kept.
"""


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows in Markdown; a figure that was not measured is a dash."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(_cell(row.get(name)) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return "–" if value is None else str(value)


def section(record: Mapping[str, Any]) -> str:
    """One benchmark: what it measures, what came out, under which conditions."""
    found = record["conditions"]
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    where = (
        f"{found['cpu']}, {found['cores']} cores, {found['memory_gib']} GiB, {found['system']}; "
        f"GPU: {found['gpu']}; load before the run {found['load_1min']}; "
        f"Python {found['python']}; {packages}; "
        f"model: {record['model']}; {found['when']}; commit {found['commit']}."
    )
    tables = [f"### {name}\n\n{table(rows)}" for name, rows in record.get("groups", {}).items()]
    parts = [f"## {record['benchmark']}", record["about"], *(tables or [table(record["rows"])])]
    if record.get("peers"):
        where += " Peers: " + ", ".join(f"{name} {found}" for name, found in record["peers"].items()) + "."
    parts.append(f"*{where}*")
    parts += [f"Skipped: {name}: {reason}" for name, reason in record.get("skipped", {}).items()]
    parts += [f"![{Path(plot).stem}](results/{plot})" for plot in record.get("plots", ())]
    return "\n\n".join(parts) + "\n"


def render(records: Sequence[Mapping[str, Any]]) -> str:
    """The page."""
    sections = [section(record) for record in records] or ["No results are kept yet: run `make bench`.\n"]
    return "\n".join([HEAD, *sections])


def write(results: Path = RESULTS, page: Path = PAGE) -> None:
    """Write the page from the results that are there."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    page.write_text(render(records), encoding="utf-8")
