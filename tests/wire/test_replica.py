"""A replica has one name, which cannot reach into another's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.wire.replica import ReplicaKey

PARTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=15)


@given(PARTS, PARTS, PARTS)
def test_the_text_of_a_key_is_parsed_back_to_it(namespace: str, service: str, instance: str) -> None:
    key = ReplicaKey(namespace, service, instance)
    assert ReplicaKey.parse(key.text) == key
    assert key.text.count("/") == 2
    assert not set("{}: \r\n\0") & set(key.text)


def test_a_namespace_may_be_empty() -> None:
    assert ReplicaKey("", "chat", "1").text == "/chat/1"
    assert ReplicaKey.parse("/chat/1") == ReplicaKey("", "chat", "1")


@pytest.mark.parametrize(
    "text",
    ["", "a", "a/b", "a/b/c/d", "a//c", "a/b/", "a/%zz/c", "a/b c/d", "a/%62/c", "a/%ff/c"],
)
def test_what_is_not_written_as_a_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="replica"):
        ReplicaKey.parse(text)


def test_a_name_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        ReplicaKey("", "a" * 256, "1")


def test_a_key_comes_from_the_resource_and_says_what_it_lacks() -> None:
    resource = {
        "service.namespace": "prod",
        "service.name": "chat",
        "service.instance.id": "1",
        "host.name": "h",
    }
    assert ReplicaKey.from_resource(resource) == ReplicaKey("prod", "chat", "1")
    assert ReplicaKey.from_resource({"service.instance.id": "1"}).service == "unknown_service"
    with pytest.raises(ValueError, match=r"needs a service\.instance\.id"):
        ReplicaKey.from_resource({"service.name": "chat"})


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        ("", True),
        ("*", True),
        ("chat", True),
        ("ch*", True),
        ("other", False),
        ("prod", False),
        ("prod/chat", True),
        ("chat/web-1", True),
        ("chat/web-2", False),
        ("prod/*/web-1", True),
        ("*/chat/web-?", True),
        ("test/chat/web-1", False),
        ("prod/chat/web-1/x", False),
    ],
)
def test_a_selector_names_service_namespace_and_instance(selector: str, matches: bool) -> None:
    assert ReplicaKey("prod", "chat", "web-1").matches(selector) is matches


def test_a_selector_may_be_the_key_itself() -> None:
    key = ReplicaKey("a/b", "c d", "é")
    assert key.matches(key.text)
