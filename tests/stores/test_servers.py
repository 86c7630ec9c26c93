"""An address is taken apart as it is documented, or refused with what to write."""

from __future__ import annotations

import pytest

pytest.importorskip("redis", reason="the collector needs the extra: collector")

from fulgurite.collector.store import StoreUnfit
from fulgurite.collector.stores.servers import Address


def test_one_server_is_what_redis_py_takes() -> None:
    parsed = Address.parse("rediss://u:p@h:1/2?ssl_ca_certs=%2Fa%2Fb.pem&protocol=3")
    assert parsed.kind == "server"
    assert parsed.urls == ("rediss://u:p@h:1/2?ssl_ca_certs=%2Fa%2Fb.pem&protocol=3",)
    assert Address.parse("unix:///run/redis.sock?db=1").urls == ("unix:///run/redis.sock?db=1",)


def test_a_cluster_is_told_of_by_some_nodes_that_share_everything_else() -> None:
    parsed = Address.parse("rediss+cluster://u:p@a:1,b:2,[::1]:3?ssl_ca_certs=x")
    assert parsed.kind == "cluster"
    assert parsed.urls == tuple(f"rediss://u:p@{at}?ssl_ca_certs=x" for at in ("a:1", "b:2", "[::1]:3"))


def test_sentinels_name_a_primary() -> None:
    url = "redis+sentinel://u:p@a:1,b:2/main/3?sentinel_username=s&sentinel_password=t&wait_replicas=1"
    parsed = Address.parse(url)
    assert (parsed.kind, parsed.name, parsed.wait_replicas) == ("sentinel", "main", 1)
    assert parsed.urls == ("redis://u:p@a:1/3", "redis://u:p@b:2/3")
    assert parsed.sentinel == {"username": "s", "password": "t"}


@pytest.mark.parametrize(
    "url",
    [
        "localhost:6379",
        "http://localhost",
        "redis+cluster://",
        "redis+cluster://a:1/1",
        "redis+sentinel://a:1",
        "redis+sentinel://a:1/",
        "redis+other://a:1",
    ],
)
def test_what_is_no_address_says_how_to_write_one(url: str) -> None:
    with pytest.raises(StoreUnfit, match="write redis://HOST:PORT"):
        Address.parse(url)


@pytest.mark.parametrize("number", ["x", "-1", "99", ""])
def test_a_number_of_replicas_is_a_number(number: str) -> None:
    with pytest.raises(StoreUnfit, match=r"wait_replicas is a number of replicas.*\*\*\*"):
        Address.parse(f"redis://u:secret@a:1?wait_replicas={number}")
