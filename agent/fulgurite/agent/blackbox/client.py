"""A client of openai-python whose streamed answers are observed.

`create` of its chat completions and completions is replaced on these two objects; the classes and other
clients are as they were. Calls that do not stream are handed through: nothing is known of when their tokens
came.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from fulgurite.agent.blackbox.answer import Wish
from fulgurite.agent.blackbox.box import Asked, Box
from fulgurite.agent.blackbox.streams import listen

_BOX = "__fulgurite_box__"
RAW = "X-Stainless-Raw-Response"  # the caller wants the HTTP response, and no stream


def endpoints(client: Any) -> list[Any]:
    """The objects of `client` that stream completions."""
    chat = getattr(getattr(client, "chat", None), "completions", None)
    plain = getattr(client, "completions", None)
    return [one for one in (chat, plain) if callable(getattr(one, "create", None))]


def box_of(client: Any) -> Box | None:
    """What observes `client`."""
    for one in endpoints(client):
        found = getattr(_own_create(one), _BOX, None)
        if isinstance(found, Box):
            return found
    return None


def _own_create(endpoint: Any) -> Any:
    """What was put on this very object."""
    return getattr(endpoint, "__dict__", {}).get("create")


def install(client: Any, box: Box) -> None:
    """Observe what `client` streams from now on."""
    for one in endpoints(client):
        plain = one.create
        made = functools.wraps(plain)(_creating(plain, box))
        setattr(made, _BOX, box)
        one.create = made


def remove(client: Any) -> None:
    """Leave `client` as it was."""
    for one in endpoints(client):
        if isinstance(getattr(_own_create(one), _BOX, None), Box):
            del one.create


def _creating(plain: Callable[..., Any], box: Box) -> Callable[..., Any]:
    def create(*args: Any, **kwargs: Any) -> Any:
        asked = _asked(box, kwargs)
        if asked is None:
            return plain(*args, **kwargs)
        try:
            found = plain(*args, **kwargs)
        except BaseException as error:
            asked.over(type(error).__name__)
            raise
        if inspect.iscoroutine(found):
            return _awaited(found, asked, box)
        _listen(found, asked, box)
        return found

    return create


async def _awaited(found: Any, asked: Asked, box: Box) -> Any:
    try:
        stream = await found
    except BaseException as error:
        asked.over(type(error).__name__)
        raise
    _listen(stream, asked, box)
    return stream


def _asked(box: Box, kwargs: dict[str, Any]) -> Asked | None:
    if kwargs.get("stream") is not True or RAW in (kwargs.get("extra_headers") or {}):
        return None
    if box.shield.is_out("ask"):
        return None
    with box.shield.at("ask"):
        told = kwargs.get("top_logprobs"), kwargs.get("logprobs")  # of chats, of completions
        alternatives = next((n for n in told if isinstance(n, int) and not isinstance(n, bool)), 0)
        choices = kwargs.get("n")
        wish = Wish(choices if isinstance(choices, int) else 1, alternatives)
        return box.ask(str(kwargs.get("model") or "model"), wish)
    return None


def _listen(stream: Any, asked: Asked, box: Box) -> None:
    heard = False
    with box.shield.at("listen"):
        heard = listen(stream, asked)
    if not heard:
        box.shield.say_once(
            "stream", "%s is no stream that Fulgurite knows: not observed", type(stream).__name__
        )
        asked.over("not observed")
