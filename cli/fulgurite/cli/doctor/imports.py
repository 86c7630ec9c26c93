"""Whether installed packages can be imported: tried in a process of its own, which may go down with one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence

from fulgurite.cli.doctor.finding import Finding
from fulgurite.cli.extras import CORE, EXTRAS, Package, install_line, is_there

TIMEOUT_S = 120.0

# One line per module, before the next is tried: the one after the last line is what ended the process.
PROGRAM = """
import importlib, json, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        reason = ""
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
    print(json.dumps([name, reason]), flush=True)
"""


def installed() -> list[Finding]:
    """A finding per package of the bare installation and of every extra."""
    findings = [_python(), _itself()]
    for extra, packages in (("", CORE), *EXTRAS.items()):
        there = [package for package in packages if is_there(package.module)]
        # What draws is probed with the renderer: importing it here would only take time.
        reasons = try_imports([package.module for package in there])
        findings += [_package(package, extra, reasons) for package in packages]
    return findings


def try_imports(modules: Sequence[str]) -> dict[str, str]:
    """Import `modules` in one subprocess: the reason of failure of each, empty for none."""
    if not modules:
        return {}
    command = [sys.executable, "-c", PROGRAM, *modules]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return dict.fromkeys(modules, f"its import did not end within {TIMEOUT_S:.0f} s")
    said = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    for module in modules:
        if module not in said:
            said[module] = f"its import ended the process (status {done.returncode})"
            break
    return said


def _package(package: Package, extra: str, reasons: Mapping[str, str]) -> Finding:
    if not is_there(package.module):
        state = "missing" if extra else "broken"
        return Finding(
            area="installed",
            name=package.distribution,
            state="missing" if state == "missing" else "broken",
            detail=f"not installed (extra: {extra})" if extra else "not installed",
            mend=install_line(extra),
        )
    reason = reasons.get(package.module, "")
    version = _version(package.distribution)
    if not reason:
        return Finding(area="installed", name=package.distribution, state="ok", detail=version)
    return Finding(
        area="installed",
        name=package.distribution,
        state="broken",
        detail=f"{version}, cannot be imported: {reason}",
        mend=f"pip install --force-reinstall {package.distribution}",
    )


def _version(distribution: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return "version unknown"


def _python() -> Finding:
    return Finding(area="installed", name="python", state="ok", detail=sys.version.split()[0])


def _itself() -> Finding:
    from fulgurite.cli.version import version

    return Finding(area="installed", name="fulgurite", state="ok", detail=version())
