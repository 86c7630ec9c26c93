"""One replica of the demo: loads the model, attaches the agent, generates until it is told to stop.

A program of its own, started by the demo. What it says on stdout is progress, on stderr trouble.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

from fulgurite.cli.demo.pace import Pace
from fulgurite.cli.demo.traffic import Request, requests

if TYPE_CHECKING:
    from torch import Tensor

TEMPERATURE = 0.8
REST_S = 0.4
"""Pause between two requests, so that one is seen to end before the next begins."""
NAP_S = 0.05


class Stop:
    """Whether this process was asked to leave. A plain flag: a signal handler may set it at any point."""

    def __init__(self) -> None:
        self.requested = False

    def install(self) -> None:
        """Set the flag on SIGTERM and SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._request)

    def _request(self, *_: object) -> None:
        self.requested = True

    def sleep(self, seconds: float) -> None:
        """Sleep, but no longer than until the flag is set."""
        until = time.monotonic() + seconds
        while not self.requested and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, NAP_S))


class PacedStop:
    """A stopping criterion of `transformers` that waits until the next step is due, ends when asked to."""

    def __init__(self, pace: Pace, stop: Stop) -> None:
        self._pace = pace
        self._stop = stop

    def __call__(self, input_ids: Tensor, _scores: Any, **_: Any) -> Tensor:
        """Which rows, shape (rows,), end here."""
        import torch

        self._stop.sleep(self._pace.wait_s(len(input_ids), now_s=time.monotonic()))
        return torch.full((len(input_ids),), self._stop.requested, device=input_ids.device)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one replica until SIGTERM."""
    options = parser().parse_args(argv)
    stop = Stop()
    stop.install()
    from fulgurite.cli.demo.model import ModelUnavailable

    try:
        model, tokenizer = _load(options.model)
        _say(f"{_size(model)}, loaded")
        agent = _attach(model, tokenizer, options)
    except (ModelUnavailable, TypeError, ValueError) as error:
        print(_first_line(error), file=sys.stderr, flush=True)
        return 1
    try:
        _serve(model, tokenizer, options, stop)
    finally:
        agent.close()
    return 0


def parser() -> argparse.ArgumentParser:
    """What it is told, by the demo and by the files of `deploy/`."""
    parser = argparse.ArgumentParser(prog="replica")
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--level", required=True)
    parser.add_argument("--model")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--pace", type=float, required=True)
    return parser


def _load(name: str | None) -> tuple[Any, Any]:
    import torch

    # The demo shares the machine with its viewer: one thread is plenty for a model of this size.
    torch.set_num_threads(1)
    from fulgurite.cli.demo.model import load

    pair: tuple[Any, Any] = load(name)
    return pair


def _attach(model: Any, tokenizer: Any, options: argparse.Namespace) -> Any:
    from fulgurite.agent import instrument

    return instrument(
        model,
        tokenizer=tokenizer,
        endpoint=options.endpoint,
        level=options.level,
        tokens="text",
        budget="none",
    )


def _serve(model: Any, tokenizer: Any, options: argparse.Namespace, stop: Stop) -> None:
    import torch

    from fulgurite.cli.demo.model.prompts import prompts

    torch.manual_seed(options.seed)
    paced = PacedStop(Pace(options.pace), stop)
    for number, request in zip(count(), requests(prompts(options.seed), seed=options.seed), strict=False):
        if stop.requested:
            return
        if number == 0:
            _say("generating")
        _generate(model, tokenizer, request, paced)
        stop.sleep(REST_S)


def _generate(model: Any, tokenizer: Any, request: Request, paced: PacedStop) -> None:
    import torch

    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    room = int(getattr(model.config, "max_position_embeddings", 0) or sys.maxsize) - request.new_tokens
    batch = tokenizer(
        list(request.prompts),
        return_tensors="pt",
        padding=True,
        padding_side="left",
        truncation=room < sys.maxsize // 2,
        max_length=room if room < sys.maxsize // 2 else None,
    )
    with torch.inference_mode():
        model.generate(
            input_ids=batch["input_ids"].to(model.device),
            attention_mask=batch["attention_mask"].to(model.device),
            max_new_tokens=request.new_tokens,
            do_sample=True,
            temperature=TEMPERATURE,
            pad_token_id=tokenizer.pad_token_id,
            stopping_criteria=[paced],
        )


def _size(model: Any) -> str:
    config = model.config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    layers = getattr(config, "num_hidden_layers", "?")
    heads = getattr(config, "num_attention_heads", "?")
    return f"{type(model).__name__}, {parameters / 1e6:.1f} M parameters, {layers} layers × {heads} heads"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
