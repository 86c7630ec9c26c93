"""Who carries arrays: the ones that somebody will ask about, and a share of the others."""

from __future__ import annotations

import numpy as np
import pytest
from tests.telemetry.made import START_NS, batch, block, ended, started

from fulgurite.telemetry.requests import RequestRecord, Requests
from fulgurite.telemetry.sampling import Divergence, Sampling, TailSampler
from fulgurite.wire.frame import FrameBlock, RequestRef


def record(
    name: str, *, tokens: int = 4, took_ms: int = 100, kind: str = "finished", trace: str = ""
) -> RequestRecord:
    made = block(tokens, request=name)
    named = FrameBlock((RequestRef(name, trace, ""),), made.columns)
    events = (started(name), ended(name, kind=kind, at_ns=START_NS + took_ms * 1_000_000))
    return Requests("d/s/i").fold(batch(named, events=events))[0]


def test_the_share_is_about_what_was_asked_for_and_the_same_for_a_whole_trace() -> None:
    sampler = TailSampler(Sampling(ratio=0.25))
    chosen = [sampler.because(record(str(n))) == "ratio" for n in range(2000)]
    assert 0.2 < np.mean(chosen) < 0.3
    one, two = (record(name, trace="ab" * 16) for name in ("one", "two"))
    assert sampler.because(one) == sampler.because(two)


def test_slow_failed_diverging_and_asked_requests_are_taken_in_any_case() -> None:
    sampler = TailSampler(Sampling(ratio=0.0, asked={"wanted", "cd" * 16}))
    for n in range(200):
        assert sampler.because(record(str(n), took_ms=100 + n % 7)) in ("", "slow")
    assert sampler.because(record("late", took_ms=900)) == "slow"
    assert sampler.because(record("broken", kind="aborted")) == "failed"
    assert sampler.because(record("odd"), is_diverging=True) == "diverging"
    assert sampler.because(record("wanted")) == "asked"
    assert sampler.because(record("other", trace="cd" * 16)) == "asked"
    assert sampler.because(record("plain")) == ""


def test_slow_can_be_a_number_of_seconds() -> None:
    sampler = TailSampler(Sampling(ratio=0.0, slow_s=0.5))
    assert sampler.because(record("a", took_ms=400)) == ""
    assert sampler.because(record("b", took_ms=600)) == "slow"


def test_a_ratio_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Sampling(ratio=1.5)


def test_the_replica_unlike_the_others_diverges() -> None:
    fleet = Divergence()
    same = np.linspace(0.1, 1.0, 12)
    for name in ("a", "b", "c"):
        fleet.tell(b"m", name, 1000, same)
    assert not any(fleet.is_diverging(b"m", name) for name in "abc")
    fleet.tell(b"m", "c", 1000, same * 1.5)
    assert [fleet.is_diverging(b"m", name) for name in "abc"] == [False, False, True]
    assert fleet.distance(b"m", "c") == pytest.approx(0.5)
    fleet.tell(b"m", "d", 10, same * 9)
    assert fleet.distance(b"m", "d") is None, "too few tokens to say"
    assert fleet.distance(b"other", "a") is None, "nobody to compare it with"
