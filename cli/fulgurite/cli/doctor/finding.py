"""One line of the doctor's report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "missing", "broken"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    area : installed, rendering, reachable or attached.
    name : what was looked at.
    state : ``ok``; ``missing``: not there, and only what needs it does not work; ``broken``: there or asked
        for, and does not work.
    detail : what was seen.
    mend : what to do; empty where there is nothing to mend.
    """

    area: str
    name: str
    state: State
    detail: str = ""
    mend: str = ""


def is_broken(findings: list[Finding]) -> bool:
    """Whether the report ends with exit status 1."""
    return any(finding.state == "broken" for finding in findings)


def report(findings: list[Finding]) -> str:
    """The findings as text: an area's name, then its lines, the way to mend under what needs it."""
    lines: list[str] = []
    width = max((len(finding.name) for finding in findings), default=0)
    area = None
    for finding in findings:
        if finding.area != area:
            area = finding.area
            lines += [*([""] if lines else []), area]
        lines.append(f"  {finding.state:<8}{finding.name:<{width}}  {finding.detail}".rstrip())
        if finding.mend:
            lines.append(f"  {'':<8}{'':<{width}}  → {finding.mend}")
    return "\n".join(lines)
