"""The file that says who may come in: what it may say, what is refused, and that a change is seen."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from fulgurite.collector.caller import ReplicaPattern
from fulgurite.collector.credentials import CredentialsFile, Limits, parse
from fulgurite.collector.limits import Bucket, Names
from fulgurite.wire.replica import ReplicaKey

TOKEN = "fg_an-example-of-a-token"
DIGEST = hashlib.sha256(TOKEN.encode()).hexdigest()
AGENT = f"""
[[credential]]
name = "agents"
token_sha256 = "{DIGEST}"
scopes = ["ingest"]
replicas = ["prod/chat/*"]
calls = 2
"""


def test_a_token_is_known_by_its_hash() -> None:
    entry = parse(AGENT).of_token(TOKEN)
    assert entry is not None
    assert (entry.caller.name, entry.caller.scopes) == ("agents", frozenset({"ingest"}))
    assert entry.limits == Limits(calls=2)
    assert parse(AGENT).of_token(TOKEN + "x") is None
    assert parse(AGENT).of_token(DIGEST) is None


def test_a_certificate_is_known_by_any_of_its_names() -> None:
    text = '[[credential]]\nname = "wall"\ncertificate = "wall.example"\nscopes = ["view"]'
    entry = parse(text).of_certificate(["other.example", "wall.example"])
    assert entry is not None
    assert entry.caller.name == "wall"
    assert parse(text).of_certificate(["other.example"]) is None
    assert not parse(text).has_tokens


@pytest.mark.parametrize(
    ("pattern", "key", "matches"),
    [
        ("prod/chat/*", ReplicaKey("prod", "chat", "a"), True),
        ("prod/chat/*", ReplicaKey("prod", "chatter", "a"), False),
        ("prod/*/*", ReplicaKey("prod", "x/y", "a"), True),
        ("prod/x%2Fy/*", ReplicaKey("prod", "x/y", "a"), True),
        ("/chat/a?", ReplicaKey("", "chat", "a1"), True),
        ("*", ReplicaKey("any", "thing", "at all"), True),
        ("prod/chat/*", ReplicaKey("PROD", "chat", "a"), False),
    ],
)
def test_a_pattern_means_whole_names(pattern: str, key: ReplicaKey, matches: bool) -> None:
    assert ReplicaPattern.parse(pattern).matches(key) is matches


@pytest.mark.parametrize("pattern", ["chat", "prod/chat", "a/b/c/d", "prod//x", ""])
def test_a_pattern_that_could_mean_two_things_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="NAMESPACE/SERVICE/INSTANCE"):
        ReplicaPattern.parse(pattern)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("[[credential]]", "[credential]"), "it has [[credential]] tables, at least one, and nothing else"),
        (('name = "agents"', ""), "credential 1 has no name"),
        (('["ingest"]', '["write"]'), "credential 'agents': scopes is a list of ingest, view, admin"),
        (('replicas = ["prod/chat/*"]', ""), "credential 'agents': it may ingest, so it names the replicas"),
        (("prod/chat/*", "chat"), "credential 'agents': replicas are named NAMESPACE/SERVICE/INSTANCE"),
        (("calls = 2", "calls = -1"), "credential 'agents': calls is a number above 0"),
        (("calls = 2", "cals = 2"), "credential 'agents': there is no setting 'cals'"),
        (("token_sha256", "certificate = 'x'\ntoken_sha256"), "credential 'agents': it has either"),
        (('"agents"', '"agents'), "not TOML: "),
    ],
)
def test_what_means_nothing_is_said_in_one_line(change: tuple[str, str], reason: str) -> None:
    with pytest.raises(ValueError) as error:
        parse(AGENT.replace(*change))
    assert str(error.value).startswith(reason)
    assert "\n" not in str(error.value)


def test_a_token_that_stands_where_its_hash_should_is_not_repeated() -> None:
    with pytest.raises(ValueError) as error:
        parse(AGENT.replace(DIGEST, TOKEN))
    assert "64 hexadecimal digits" in str(error.value)
    assert TOKEN not in str(error.value)


def test_two_credentials_cannot_share_a_name_or_a_token() -> None:
    with pytest.raises(ValueError, match="two credentials have the same name"):
        parse(AGENT + AGENT)
    with pytest.raises(ValueError, match="two credentials have the same token_sha256"):
        parse(AGENT + AGENT.replace('"agents"', '"others"'))


def test_a_changed_file_is_seen_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "credentials.toml"
    path.write_text(AGENT)
    file = CredentialsFile(path)
    assert file.in_force().of_token(TOKEN)
    for text, known in (("broken", True), (AGENT.replace(DIGEST, "0" * 64), False), (AGENT, True)):
        replacement = tmp_path / "new"
        replacement.write_text(text)
        os.replace(replacement, path)
        file.look()
        assert bool(file.in_force().of_token(TOKEN)) is known
    path.unlink()
    file.look()
    assert file.in_force().of_token(TOKEN)


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = Bucket(per_s=2.0, burst=3.0, now_s=100.0)
    assert [bucket.take(1, 100.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(1, 100.5), bucket.take(1, 100.5)] == [True, False]
    assert [bucket.take(1, 200.0) for _ in range(4)] == [True, True, True, False]


def test_what_is_owed_to_a_bucket_takes_its_time() -> None:
    bucket = Bucket(per_s=10.0, burst=10.0, now_s=0.0)
    assert bucket.owe(10, 0.0) == 0.0
    assert bucket.owe(20, 0.0) == 2.0
    assert bucket.owe(0, 1.5) == 0.5


def test_names_are_limited_and_forgotten_with_time() -> None:
    names = Names(most=2, age_s=10.0)
    assert [names.say(name, 0.0) for name in ("a", "b", "c", "a")] == [True, True, False, True]
    assert names.say("a", 8.0)
    assert [names.say(name, 11.0) for name in ("c", "d")] == [True, False]
