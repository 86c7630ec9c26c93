"""The bad network does what it says, and nothing else."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from tests.chaos.proxy import CALM, Proxy, Weather, flipped


class Echo:
    """A server that sends back what it gets, and says goodbye when its client has no more to say."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        with client:
            try:
                while data := client.recv(65536):
                    client.sendall(data)
                client.sendall(b"goodbye")
            except OSError:
                pass

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    echo = Echo()
    with Proxy(echo.port, seed=1) as proxy:
        yield proxy
    echo.close()


def connected(proxy: Proxy) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", proxy.port), timeout=10.0)
    client.sendall(b"hello")
    assert client.recv(64) == b"hello"
    return client


def test_in_calm_weather_bytes_pass_and_an_end_is_passed_on(proxy: Proxy) -> None:
    with connected(proxy) as client:
        client.shutdown(socket.SHUT_WR)
        assert client.recv(64) == b"goodbye"
        assert client.recv(64) == b""


def test_a_reset_is_an_error_and_no_end(proxy: Proxy) -> None:
    with connected(proxy) as client:
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            client.recv(64)


def test_a_half_closed_connection_still_speaks_the_other_way(proxy: Proxy) -> None:
    with connected(proxy) as client:
        proxy.half_close()
        assert client.recv(64) == b"goodbye"


def test_a_black_hole_holds_what_comes_until_it_is_gone(proxy: Proxy) -> None:
    with connected(proxy) as client:
        proxy.weather = Weather(is_black_hole=True)
        client.sendall(b"anyone?")
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(64)
        client.settimeout(10.0)
        proxy.weather = CALM
        assert client.recv(64) == b"anyone?"


def test_a_delay_and_a_throttle_take_their_time(proxy: Proxy) -> None:
    with connected(proxy) as client:
        proxy.weather = Weather(delay_s=0.1, bytes_per_s=1000)
        began_s = time.monotonic()
        client.sendall(b"x" * 100)
        assert client.recv(200) == b"x" * 100
        assert time.monotonic() - began_s >= 0.4  # both ways: 0.1 s and 100 bytes at 1000 a second


def test_a_corrupted_chunk_differs_in_one_bit(proxy: Proxy) -> None:
    data = bytes(range(256))
    changed = flipped(data, random.Random(3))
    assert sum(bin(a ^ b).count("1") for a, b in zip(data, changed, strict=True)) == 1
    with connected(proxy) as client:
        proxy.weather = Weather(corrupt=1.0)
        client.sendall(data)
        assert client.recv(512) != data


def test_nobody_behind_it_is_told_as_it_would_be_without_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with (
        Proxy(port) as proxy,
        pytest.raises(ConnectionResetError),  # of the connection, or already of connecting
        socket.create_connection(("127.0.0.1", proxy.port), timeout=10.0) as client,
    ):
        client.recv(1)
