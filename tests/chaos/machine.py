"""Which runs this machine cannot make."""

from __future__ import annotations

import shutil

from tests.chaos.plan import Plan
from tests.chaos.processes import server_binary
from tests.chaos.rig import clock_can_jump

from fulgurite.collector.options import VARIABLES


def impossible(plan: Plan) -> str:
    """What this machine lacks for a run; empty where it has everything."""
    if server_binary(plan.server) is None:
        return f"there is no server: {plan.server}"
    if plan.has("collector", "jump") and not clock_can_jump():
        return "a process's clock cannot be moved without libfaketime"
    if any(fault.kind == "corrupt" for fault in plan.faults) and not shutil.which("openssl"):
        return "bits are flipped under TLS only, and there is no openssl to make certificates with"
    if plan.is_link_encrypted and "tls_cert" not in VARIABLES:
        return "the collector does not speak TLS"
    return ""
