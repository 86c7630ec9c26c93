"""What has become of each request of the engine, told as events of the HTTP request that it belongs to. Pure:
knows no engine, clock or process.

A request over HTTP may be several of the engine's: one per choice and prompt. It has started with the first
of them, and is over with the last; it was aborted where one of them was.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fulgurite.wire.frame import RequestEvent

_ENDS = {"FINISHED_ABORTED": "aborted", "FINISHED_ERROR": "aborted", "FINISHED_IGNORED": "aborted"}


@dataclass(slots=True)
class _Public:
    """A request over HTTP.

    Attributes
    ----------
    prompts : tokens of each sequence's prompt, by sequence.
    live : requests of the engine that are not over.
    """

    prompts: dict[int, int] = field(default_factory=dict)
    live: set[str] = field(default_factory=set)
    has_started: bool = False
    was_aborted: bool = False


@dataclass(slots=True)
class _One:
    """A request of the engine."""

    public: str
    prompt: int
    arrived_s: float
    is_scheduled: bool = False


@dataclass(slots=True)
class Docket:
    """The requests of one scheduler, and counts since its start.

    Attributes
    ----------
    evicted, preemptions, prefix_asked, prefix_found, queued, queue_ns : see `Figures`.
    """

    evicted: int = 0
    preemptions: int = 0
    prefix_asked: int = 0
    prefix_found: int = 0
    queued: int = 0
    queue_ns: int = 0
    _public: dict[str, _Public] = field(default_factory=dict)
    _ones: dict[str, _One] = field(default_factory=dict)
    _events: list[RequestEvent] = field(default_factory=list)

    def arrived(self, request: str, public: str, *, sequence: int, prompt: int, arrived_s: float) -> None:
        """A request of the engine waits to be scheduled."""
        if request in self._ones:
            return
        self._ones[request] = _One(public, prompt, arrived_s)
        whole = self._public.setdefault(public, _Public())
        whole.prompts[sequence] = prompt
        whole.live.add(request)

    def scheduled(self, request: str, *, cached: int, now_s: float) -> None:
        """It runs for the first time; `cached` tokens of its prompt were there already."""
        one = self._ones.get(request)
        if one is None or one.is_scheduled:
            return
        one.is_scheduled = True
        self.queued += 1
        self.prefix_asked += one.prompt
        self.prefix_found += cached
        self.queue_ns += max(0, int((now_s - one.arrived_s) * 1e9))
        whole = self._public[one.public]
        if not whole.has_started:
            whole.has_started = True
            self._say(one.public, whole, "started", now_s)

    def preempted(self, request: str, *, now_s: float) -> None:
        """It lost its blocks, and waits again."""
        self.preemptions += 1
        one = self._ones.get(request)
        if one is not None:
            self._say(one.public, self._public[one.public], "preempted", now_s)

    def over(self, request: str, *, status: str, now_s: float) -> None:
        """It is done with, as `status` says."""
        one = self._ones.pop(request, None)
        if one is None:
            return
        whole = self._public[one.public]
        whole.live.discard(request)
        whole.was_aborted |= status in _ENDS
        if whole.live:
            return
        del self._public[one.public]
        kind = "aborted" if whole.was_aborted else "finished"
        reason = status.removeprefix("FINISHED_").lower()
        self._say(one.public, whole, kind, now_s, reason=reason)

    def take(self) -> tuple[RequestEvent, ...]:
        """What happened since this was asked last."""
        found, self._events = tuple(self._events), []
        return found

    def _say(self, public: str, whole: _Public, kind: str, now_s: float, *, reason: str = "") -> None:
        prompts = tuple(whole.prompts[i] for i in sorted(whole.prompts))
        self._events.append(
            RequestEvent(
                request_id=public,
                kind=kind,
                time_ns=int(now_s * 1e9),
                prompt_tokens=max(prompts, default=0),
                prompt_tokens_per_row=prompts,
                sequences=len(prompts),
                reason=reason,
            )
        )
