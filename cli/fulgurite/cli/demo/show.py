"""One run of the demo from the first process to the last: starts, tells, waits, ends."""

from __future__ import annotations

import os
import sys
import time
import webbrowser

from fulgurite.cli.demo.plan import Options, cast, film, moved, replica_names
from fulgurite.cli.demo.ports import any_free
from fulgurite.cli.demo.processes import End, Processes, exit_text
from fulgurite.cli.demo.signs import Signs
from fulgurite.cli.demo.stage import Seen, Stage
from fulgurite.cli.demo.stopping import StopSignals
from fulgurite.cli.errors import CommandError

TICK_S = 0.1
LOOK_S = 0.25
STEADY_LOOK_S = 2.0
START_LIMIT_S = 300.0
FILM_MARGIN_S = 180.0
MOVES_MAX = 4


class Show:
    """A run.

    Parameters
    ----------
    options : Options
    browser : bool
        Whether the system's browser may be opened.
    verbose : bool
        Whether to pass on everything that the processes write on stdout.
    """

    def __init__(self, options: Options, *, browser: bool, verbose: bool) -> None:
        self._options = options
        self._browser = browser
        self._verbose = verbose
        self._processes = Processes()
        self._stage = Stage(replica_names(options), has_page=options.out is None and not options.desktop)
        self._signs = Signs(options.collector, options.page)
        self._began_s = time.monotonic()
        self._up_s: float | None = None
        self._next_look_s = 0.0
        self._moves = 0
        self._is_cast = False

    def run(self) -> int:
        """Start everything, see it through, leave no process. Returns the exit status."""
        with StopSignals() as signals:
            try:
                self._processes.start(cast(self._options)[0])
                while signals.received is None and not self._step():
                    time.sleep(TICK_S)
            finally:
                self._stop()
        return self._close(signals.received)

    def _stop(self) -> None:
        try:
            self._say("stopping")
        finally:  # whatever became of the terminal
            self._signs.close()
            self._processes.stop()

    def _step(self) -> bool:
        """One look around; True where the run is over."""
        self._pass_on()
        end = self._processes.end()
        if end is not None and end.is_failure:
            if not self._move(end):
                raise CommandError(self._obituary(end))
            return False
        if not self._is_cast and self._processes.is_listening("collector"):
            self._is_cast = True
            for spec in cast(self._options)[1:]:
                self._processes.start(spec)
        self._look()
        return end is not None or self._is_time_up()

    def _move(self, end: End) -> bool:
        """Start what ended once more, elsewhere, if all that it lacked was a port that we had seen free."""
        options = moved(self._options, end.name, self._processes.last_lines(end.name), free=any_free())
        if options is None or self._moves == MOVES_MAX:
            return False
        self._moves += 1
        self._options = options
        self._signs.close()
        self._signs = Signs(options.collector, options.page)
        self._processes.start(next(spec for spec in cast(options) if spec.name == end.name))
        return True

    def _look(self) -> None:
        now_s = time.monotonic()
        if now_s < self._next_look_s:
            return
        self._next_look_s = now_s + (LOOK_S if not self._stage.is_up else STEADY_LOOK_S)
        page = self._processes.is_listening("viewer") and not self._stage.page_up and self._signs.is_page_up()
        tokens = self._signs.tokens() if self._processes.is_listening("collector") else None
        for name in self._stage.see(Seen(tokens, page)):
            self._greet(name)
        if self._stage.is_up and self._up_s is None:
            self._up_s = time.monotonic()
            self._everything_is_up()

    def _greet(self, name: str) -> None:
        if name == "collector":
            self._say(f"collector listens on {self._options.collector}, with an embedded server behind it")
        elif name == "page":
            self._say(f"viewer: http://{self._options.page}/")
            if self._browser and has_display():
                webbrowser.open(f"http://{self._options.page}/")
        else:
            self._say(f"{name}: first token stored")

    def _everything_is_up(self) -> None:
        out = self._options.out
        if out is not None:
            length = "" if out.suffix == ".png" else f"{self._options.seconds:g} s into "
            self._say(f"drawing {length}{out}")
            self._processes.start(film(self._options))
        elif self._options.desktop:
            self._say("watch it in the window; to close it, or Ctrl-C, stops everything")
        else:
            self._say(f"watch it at http://{self._options.page}/ ; Ctrl-C stops everything")

    def _is_time_up(self) -> bool:
        now_s, seconds = time.monotonic(), self._options.seconds
        if self._options.out is None:
            return seconds is not None and self._up_s is not None and now_s - self._up_s > seconds
        if self._up_s is None and now_s - self._began_s > START_LIMIT_S:
            raise CommandError(f"not up after {START_LIMIT_S:.0f} s: {', '.join(self._stage.missing)}")
        if self._up_s is not None and now_s - self._up_s > (seconds or 0.0) + FILM_MARGIN_S:
            raise CommandError(
                "the film was not finished in time\n" + _indented(self._processes.last_lines("film"))
            )
        return False

    def _pass_on(self) -> None:
        while not self._processes.said.empty():
            name, line = self._processes.said.get()
            if self._verbose or name.startswith("replica-") or name == "film":
                self._say(f"{name}: {line}")

    def _obituary(self, end: End) -> str:
        return obituary(end, self._processes.last_lines(end.name))

    def _close(self, signal_number: int | None) -> int:
        counts = ", ".join(f"{name} {count}" for name, count in sorted(self._stage.tokens.items()))
        self._say(f"stopped; tokens stored: {counts or 'none'}")
        out = self._options.out
        if out is None:
            return 0
        if signal_number is not None:
            return 128 + signal_number
        if not out.is_file() or not out.stat().st_size:
            raise CommandError(f"nothing was written to {out}")
        self._say(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
        return 0

    def _say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._began_s:5.1f} s] {text}", flush=True)


def obituary(end: End, lines: list[str]) -> str:
    """What is said of a process that ended too early; one line where it had said no more than one."""
    how = f"{end.name} ended with {exit_text(end.status)}"
    if len(lines) > 1:
        return f"{how}; its last lines:\n{_indented(lines)}"
    return f"{how}: {lines[0]}" if lines else f"{how} and said nothing"


def has_display() -> bool:
    """Whether a browser could show a window here."""
    return sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _indented(lines: list[str]) -> str:
    return "\n".join(f"    {line}" for line in lines)
