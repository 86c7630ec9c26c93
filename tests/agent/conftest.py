"""What holds for every test of the agent."""

from __future__ import annotations

import os
import sys

import pytest


@pytest.fixture(autouse=True)
def _strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own failures are raised, the machine is shared, and no setting of the surroundings leaks in."""
    for name in [name for name in os.environ if name.startswith(("FULGURITE_", "OTEL_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FULGURITE_STRICT", "1")
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
