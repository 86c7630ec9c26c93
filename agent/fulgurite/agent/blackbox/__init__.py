"""A black box beside the glass ones: a model that can only be asked, observed from where it is asked.

`observe` takes a client of openai-python (or one with the same objects) and what it streams becomes frames:
times, and the log-probabilities and alternatives that the server gives. Everything else is not measured, and
is drawn so. The client goes on exactly as before: same objects, same exceptions. openai is not imported here.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

from fulgurite.agent import config
from fulgurite.agent.blackbox.box import Box
from fulgurite.agent.blackbox.client import box_of, endpoints, install, remove
from fulgurite.agent.shield import Shield

if TYPE_CHECKING:
    from fulgurite.agent.exporter import Exporter

Client = TypeVar("Client")


def observe(
    client: Client,
    *,
    exporter: Exporter | None = None,
    endpoint: str | None = None,
    tokens: str | None = None,
    spool: str | os.PathLike[str] | None = None,
) -> Client:
    """Observe what `client` streams: ``chat.completions`` and ``completions``, synchronous or not.

    Each model that it is asked for is a replica. A request has the id of the answer; its first frame's
    `started_ns` is when it was asked for, so that the first `ended_ns` less that is the time to the first
    token.

    Parameters
    ----------
    client : ``openai.OpenAI``, ``openai.AsyncOpenAI``, or what has the same objects. Copies that it makes of
        itself (``with_options``) are not observed.
    exporter : where frames go; by default a link to the collector at `endpoint`.
    endpoint : ``HOST:PORT`` of the collector, default ``FULGURITE_ENDPOINT`` or ``127.0.0.1:4747``.
    tokens : what of a token may leave the process: ``off`` (default), ``ids`` or ``text``.
    spool : folder in which frames wait for a collector when memory has no room for them.

    Returns
    -------
    client
        The same object.

    Raises
    ------
    TypeError
        Where `client` has nothing that could stream completions.
    ValueError
        For a setting that means nothing.

    Examples
    --------
    >>> from openai import OpenAI  # doctest: +SKIP
    >>> client = observe(OpenAI())  # doctest: +SKIP
    """
    if not endpoints(client):
        raise TypeError(
            f"observe() takes a client with chat.completions.create or completions.create, not "
            f"{type(client).__name__!r}: pass openai.OpenAI() or openai.AsyncOpenAI()"
        )
    settings = config.settings(endpoint=endpoint, tokens=tokens, spool=spool)
    if settings.disabled or settings.level == "off" or box_of(client) is not None:
        return client
    address = str(getattr(client, "base_url", "") or "")
    install(client, Box(settings, exporter, Shield(), address=address))
    return client


def unobserve(client: object, timeout_s: float = 2.0) -> None:
    """Leave `client` as it was, and deliver what is pending for at most `timeout_s`. May be called again."""
    box = box_of(client)
    remove(client)
    if box is not None:
        box.close(timeout_s)
