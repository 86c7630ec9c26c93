"""Who draws for the page: what is seen in a pause stays, however long a picture takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.viewer.made_up import until

from fulgurite.viewer.inbox import Inbox
from fulgurite.viewer.pace import ARCS, FIRST_DETAIL
from fulgurite.viewer.session import Session
from fulgurite.viewer.studio import Studio


class _Slow:
    """Pictures that take long, one after the other; after `pictures` of them it is `done`."""

    def __init__(self, pictures: int) -> None:
        self._left = pictures
        self.done = threading.Event()
        self.again: Callable[[], None] = lambda: None

    def render(self, now_s: float, clock_s: float | None = None) -> NDArray[np.uint8]:
        time.sleep(0.08)
        self._left -= 1
        if self._left:
            self.again()
        else:
            self.done.set()
        return np.zeros((2, 2, 3), np.uint8)

    def resize(self, width: int, height: int) -> None:
        pass

    def pick(self, x: float, y: float) -> None:
        return None

    def place(self, key: str, node: object) -> None:
        return None

    def close(self) -> None:
        pass


@pytest.mark.parametrize("paused", [True, False])
def test_a_slow_machine_takes_no_arcs_out_of_a_picture_that_is_held(
    paused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fulgurite.viewer.pace.SETTLE", 3)
    session, painter = Session(), _Slow(18)
    session.storm.arcs = ARCS[FIRST_DETAIL]
    if paused:
        session.toggle_pause()
    studio = Studio(
        session, Inbox(), lambda: painter, on_picture=lambda _picture: None, on_page=lambda _facts: None
    )
    painter.again = lambda: studio.post(lambda _session: None)
    studio.look(1)
    studio.start()
    until(painter.done.is_set, "the pictures are drawn")
    studio.close()
    assert studio.failure is None
    assert (session.storm.arcs == ARCS[FIRST_DETAIL]) == paused
