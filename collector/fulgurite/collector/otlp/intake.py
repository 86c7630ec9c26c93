"""What comes in by OTLP goes to the store, within a budget; the answer says what a client is to do."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from fulgurite.collector.otlp.parts import Parts, taken_apart
from fulgurite.collector.outage import Outage
from fulgurite.collector.store import Store, StoreError
from fulgurite.wire.refusals import STORE_AWAY

RETRY_S: Final = 1.0
BUDGET_BYTES: Final = 64 << 20
"""Per minute and collector."""


class Throttled(Exception):
    """Nothing of the request was kept; the same may be sent again after `retry_s`.

    Attributes
    ----------
    is_ours : whether it is the store that is away, and not the client that sends too much.
    """

    def __init__(self, message: str, *, retry_s: float, is_ours: bool) -> None:
        super().__init__(message)
        self.retry_s = retry_s
        self.is_ours = is_ours


@dataclass(slots=True)
class SpanAccount:
    """What came since the start, in spans and requests."""

    kept: int = 0
    rejected: int = 0
    throttled_requests: int = 0


class SpanIntake:
    """Takes export requests.

    Parameters
    ----------
    budget_bytes : int
        How much of spans is kept per minute; beyond it clients are told to wait.
    """

    def __init__(self, store: Store, *, outage: Outage, budget_bytes: int = BUDGET_BYTES) -> None:
        self.account = SpanAccount()
        self._store, self._outage = store, outage
        self._budget_bytes = budget_bytes
        self._minute = 0
        self._spent = 0

    async def take(self, data: bytes) -> Parts:
        """Keep what can be kept.

        Raises
        ------
        NotOtlp
            Where it is no export request.
        Throttled
            Where it is to be sent again later.
        """
        parts = taken_apart(data)
        now_s = time.time()
        if int(now_s // 60) != self._minute:
            self._minute, self._spent = int(now_s // 60), 0
        if self._spent + parts.nbytes > self._budget_bytes and self._spent:
            self.account.throttled_requests += 1
            message = f"more than {self._budget_bytes} bytes of spans within a minute"
            raise Throttled(message, retry_s=60 - now_s % 60, is_ours=False)
        self._spent += parts.nbytes
        if parts.parts:
            try:
                await self._store.keep_spans(parts.parts)
            except StoreError as error:
                self._outage.failed("write", error)
                self._spent -= parts.nbytes
                self.account.throttled_requests += 1
                raise Throttled(f"{STORE_AWAY}: {error}", retry_s=RETRY_S, is_ours=True) from None
            self._outage.succeeded("write")
        self.account.kept += parts.spans
        self.account.rejected += parts.rejected
        return parts
