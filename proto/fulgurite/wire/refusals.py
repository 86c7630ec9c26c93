"""Words in a refusal that the other end of a call knows: a status code alone cannot tell them apart."""

from __future__ import annotations

from typing import Final

STORE_AWAY: Final = "the store is away"
"""How the details of an UNAVAILABLE begin where the collector is there and its store is not."""
