"""Prints the table of measured errors in `docs/capture.md`.

Run as ``python -m tests.reference.figures`` in the root of the repository. The page is not rewritten by it: a
figure is copied there by hand, with the conditions it was measured under.
"""

from __future__ import annotations

import logging
import sys
import warnings

import torch
from tests.reference import gate
from tests.reference.families import FAMILIES

HEAD = "| family | attention | float32 | residue | bfloat16 | residue | not given |"


def row(name: str, how: str) -> str:
    """One family under one attention implementation, as a line of Markdown."""
    cells = [name.replace("_", " "), how]
    refused: dict[str, str] = {}
    for dtype in (torch.float32, torch.bfloat16):
        found = gate.run(name, dtype=dtype, attn_implementation=how)
        refused = found.unavailable
        agreements = gate.agreements(found)
        channel, worst = max(agreements.items(), key=lambda item: item[1].relative)
        is_whole = found.captured("residue") is not None
        residue = f"{gate.residues(found).max():.1e}" if is_whole else "–"
        cells += [f"{worst.relative:.1e} `{channel}`", residue]
    return f"| {' | '.join([*cells, _families_of(refused)])} |"


def _families_of(channels: dict[str, str]) -> str:
    """Channels that are not given in some or all layers, in few words."""
    groups = {
        "routing": "sink_mass",
        "neurons": "neuron_ids",
        "contribution": "residue",
        "lens": "lens_prob",
    }
    return ", ".join(group for group, member in groups.items() if member in channels)


def main() -> int:
    """Print the table."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    sys.stderr.write(f"torch {torch.__version__}, one thread, seed 0\n")
    lines = [HEAD, "|---|---|---|---|---|---|---|"]
    lines += [row(name, how) for name, family in FAMILIES.items() for how in family.implementations]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
