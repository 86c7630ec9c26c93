"""The commands: one file each. A file says how its command is called and runs it; the parts do the work."""

from __future__ import annotations

from fulgurite.cli.commands import (
    collector,
    control,
    demo,
    doctor,
    export,
    replicas,
    run,
    status,
    tail,
    telemetry,
    token,
    trace,
    view,
)
from fulgurite.cli.commands.command import Command

COMMANDS: dict[str, Command] = {
    module.COMMAND.name: module.COMMAND
    for module in (
        demo,
        run,
        collector,
        view,
        replicas,
        control,
        status,
        tail,
        trace,
        export,
        telemetry,
        token,
        doctor,
    )
}
