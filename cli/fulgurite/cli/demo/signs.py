"""Signs of life: what of a run is up by now, asked over the network like any other client would."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import TYPE_CHECKING

from fulgurite.cli.address import Address
from fulgurite.cli.errors import CommandError

if TYPE_CHECKING:
    from fulgurite.cli.client import Collector

TIMEOUT_S = 2.0


class Signs:
    """Asks the collector and the page.

    Parameters
    ----------
    collector, page : Address
        Where they will listen.
    """

    def __init__(self, collector: Address, page: Address) -> None:
        self._address = collector
        self._page = page
        self._connection: Collector | None = None

    def tokens(self) -> dict[str, int] | None:
        """Tokens stored by instance; None while the collector does not answer."""
        from fulgurite.cli.client import Collector, listens

        # A channel that failed waits longer and longer before it tries again: none before somebody listens.
        if self._connection is None:
            if not listens(self._address, timeout_s=TIMEOUT_S):
                return None
            self._connection = Collector(self._address, timeout_s=TIMEOUT_S)
        try:
            response = self._connection.replicas()
        except CommandError:
            return None
        return {status.resource.service_instance_id: status.tokens_total for status in response.replicas}

    def is_page_up(self) -> bool:
        """Whether the page is served."""
        try:
            with urllib.request.urlopen(f"http://{self._page}/", timeout=TIMEOUT_S) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.close()
