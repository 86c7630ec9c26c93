"""The commands: one file each. A file says how its command is called and runs it; the parts do the work."""

from __future__ import annotations

from fulgurite.cli.commands import collector, demo, doctor, replicas, tail, telemetry, trace, view
from fulgurite.cli.commands.command import Command

COMMANDS: dict[str, Command] = {
    module.COMMAND.name: module.COMMAND
    for module in (demo, collector, view, replicas, tail, trace, telemetry, doctor)
}
