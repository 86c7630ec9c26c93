"""A queue with a thread behind it: bounded, retried, accounted for. Its failure touches nobody.

The rules are those of the OpenTelemetry Collector's exporters: retry after 5 s, then up to 30 s; when the
queue is full, the oldest go.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from fulgurite.telemetry.otlp import NotSent, Sender
from fulgurite.wire.ledger import Account, Ledger

log = logging.getLogger(__name__)

MOST_ITEMS: Final = 8192
MOST_AT_ONCE: Final = 512
FLUSH_S: Final = 0.2
FIRST_RETRY_S: Final = 5.0
LAST_RETRY_S: Final = 30.0
GIVE_UP_S: Final = 300.0

Encode = Callable[[Sequence[Any]], bytes]


class Delivery:
    """Items on their way to one OTLP receiver.

    Parameters
    ----------
    encode : callable
        Makes one export request of some items.
    weigh : callable
        How many spans, points or records an item is; the account counts these.
    first_retry_s : float
        How long the first wait is; it doubles up to `LAST_RETRY_S`.
    """

    def __init__(
        self,
        name: str,
        sender: Sender,
        encode: Encode,
        *,
        weigh: Callable[[Any], int] = lambda _: 1,
        most_items: int = MOST_ITEMS,
        first_retry_s: float = FIRST_RETRY_S,
        give_up_s: float = GIVE_UP_S,
    ) -> None:
        self.name = name
        self._sender, self._encode, self._weigh = sender, encode, weigh
        self._most_items = most_items
        self._first_retry_s, self._give_up_s = first_retry_s, give_up_s
        self._queue: deque[Any] = deque()
        self._ledger = Ledger()
        self._more = threading.Condition()
        self._under_way = 0
        self._is_closing = self._is_left_alone = False
        self._said = False
        self._thread: threading.Thread | None = None

    def put(self, items: Sequence[Any]) -> None:
        """Take items. Never waits and never raises; when it is full the oldest go."""
        with self._more:
            for item in items:
                self._ledger.capture(self._weigh(item))
                self._queue.append(item)
            while len(self._queue) > self._most_items:
                self._ledger.drop(self._weigh(self._queue.popleft()), "queue_full")
            if self._is_closing:
                self._drop_all("closed")
                return
            self._more.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"fulgurite-otlp-{self.name}", daemon=True)
            self._thread.start()

    def account(self) -> Account:
        """The account as of now: ``captured == pending + acknowledged + sum(dropped.values())``, always."""
        return self._ledger.account()

    def flush(self, timeout_s: float) -> bool:
        """Wait until nothing is pending; False where it was not in time."""
        limit_s = time.monotonic() + timeout_s
        with self._more:
            while self._queue or self._under_way:
                left_s = limit_s - time.monotonic()
                if left_s <= 0:
                    return False
                self._more.wait(min(left_s, 0.05))
        return True

    def close(self, timeout_s: float = 2.0) -> None:
        """Flush for at most `timeout_s`; what is pending then is dropped."""
        if self._thread is not None:
            self.flush(timeout_s)
        with self._more:
            self._is_closing = True
            self._drop_all("closed")
            self._more.notify_all()
        self._sender.close()  # which ends a call that hangs
        if self._thread is not None:
            self._thread.join(0.5)
        with self._more:
            if self._under_way:  # it hangs in a call that cannot be ended: nobody waits for its answer
                self._ledger.drop(self._under_way, "closed")
                self._under_way, self._is_left_alone = 0, True

    def _drop_all(self, reason: str) -> None:
        while self._queue:
            self._ledger.drop(self._weigh(self._queue.popleft()), reason)

    def _run(self) -> None:
        while items := self._next():
            weight = sum(map(self._weigh, items))
            try:
                taken, why = self._deliver(items, weight)
            except Exception as error:  # whatever it is, the next items deserve their turn
                taken, why = 0, "failed"
                if self._is_closing:  # a channel that was closed under the call
                    why = "closed"
                else:
                    self._say(f"items could not be encoded or sent: {error!r}")
            with self._more:
                if self._is_left_alone:
                    return
                self._under_way = 0
                self._ledger.acknowledge(taken)
                if weight > taken:
                    self._ledger.drop(weight - taken, why)
                self._more.notify_all()

    def _next(self) -> list[Any]:
        with self._more:
            while not self._queue and not self._is_closing:
                self._more.wait(1.0)
            if not self._is_closing and len(self._queue) < MOST_AT_ONCE:
                self._more.wait(FLUSH_S)  # what comes within a moment goes along
            items = [self._queue.popleft() for _ in range(min(MOST_AT_ONCE, len(self._queue)))]
            self._under_way = sum(map(self._weigh, items))
            return items

    def _deliver(self, items: list[Any], weight: int) -> tuple[int, str]:
        """Send until it is taken or given up: how many were taken, and why the others were not."""
        request = self._encode(items)
        began_s, wait_s = time.monotonic(), self._first_retry_s
        while True:
            try:
                taken = self._sender.send(request)
            except NotSent as error:
                self._say(f"not sent: {error}")
                if error.is_final:
                    return 0, "refused"
                if time.monotonic() - began_s > self._give_up_s:
                    return 0, "gave_up"
                pause_s = wait_s if error.retry_after_s is None else error.retry_after_s
                wait_s = min(2 * wait_s, LAST_RETRY_S)
                if not self._pause(pause_s * random.uniform(0.8, 1.2)):
                    return 0, "closed"
            else:
                self._said = False
                return weight - min(taken.rejected, weight), "rejected"  # those are never sent again

    def _pause(self, seconds: float) -> bool:
        """Wait; False where it is over."""
        limit_s = time.monotonic() + seconds
        with self._more:
            while not self._is_closing and (left_s := limit_s - time.monotonic()) > 0:
                self._more.wait(left_s)
            return not self._is_closing

    def _say(self, what: str) -> None:
        """Once per outage."""
        if not self._said:
            self._said = True
            log.warning("OTLP %s: %s", self.name, what)
