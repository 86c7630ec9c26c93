"""Write the table of channels in `docs/channels.md` from the one in `fulgurite.wire.channels`.

Run as ``python scripts/channels_page.py``; with ``--check`` it exits 1 where the page is stale.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fulgurite.wire.channels import CHANNELS, Channel

PAGE = Path(__file__).parent.parent / "docs" / "channels.md"
BEGIN, END = "<!-- table:begin -->\n", "<!-- table:end -->\n"


def _row(channel: Channel) -> str:
    shape = "(" + ", ".join(channel.dims) + ")" if channel.dims else "scalar"
    formula = channel.formula.replace("|", "\\|")
    return (
        f"| `{channel.name}` | {channel.family} | {shape} | {channel.unit} | {channel.level} "
        f"| {formula} | {channel.exact} / {channel.compact} |\n"
    )


def table() -> str:
    """The table in Markdown, one row per channel."""
    head = "| channel | family | shape | unit | level | what it is | exact / compact |\n" + "|---" * 7 + "|\n"
    return head + "".join(_row(channel) for channel in CHANNELS)


def render(page: str) -> str:
    """The page with a fresh table between its markers."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + table() + END + after


def main(argv: list[str]) -> int:
    """Write the page, or check it."""
    page = PAGE.read_text(encoding="utf-8")
    fresh = render(page)
    if "--check" in argv:
        return int(fresh != page)
    PAGE.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
