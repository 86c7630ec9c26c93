"""What stands in the place of a module's forward pass, and when nothing does."""

from __future__ import annotations

import copy
import functools
import inspect
import io
import pickle
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.agent.reference import BY_NAME, probes_on, prompts, trace_of  # noqa: E402
from torch import nn  # noqa: E402

from fulgurite.agent import InMemoryExporter, forwards, instrument  # noqa: E402
from fulgurite.agent.forwards import Forward  # noqa: E402

GREEDY: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}


class Scaled(nn.Module):
    """A module that says how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.calls: list[str] = []

    def forward(self, x: torch.Tensor, *, by: float = 1.0) -> torch.Tensor:
        self.calls.append("forward")
        return x * self.weight * by


class Seen:
    """A probe that notes what it is called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, *given: Any) -> None:
        self.calls.append(given)


def test_probes_see_what_a_module_is_handed_and_gives_and_nothing_stays() -> None:
    module, x = Scaled(), torch.ones(3)
    seen = {kind: Seen() for kind in ("before", "after", "after_all")}
    handles = [
        forwards.before(module, seen["before"]),
        forwards.after(module, seen["after"]),
        forwards.after(module, seen["after_all"], with_kwargs=True),
    ]
    output = module(x, by=3.0)
    assert torch.equal(output, torch.full((3,), 6.0))
    assert not module._forward_hooks
    assert seen["before"].calls == [(module, (x,), {"by": 3.0})]
    assert seen["after"].calls == [(module, (x,), output)]
    assert seen["after_all"].calls == [(module, (x,), {"by": 3.0}, output)]
    for handle in (handles[1], handles[0], handles[2], handles[0]):
        handle.remove()
    assert "forward" not in vars(module)
    module(x)
    assert len(seen["before"].calls) == 1


def test_it_is_told_of_as_the_forward_pass_itself() -> None:
    module = Scaled()
    forwards.before(module, Seen())
    assert inspect.signature(module.forward) == inspect.signature(Scaled().forward)
    assert module.forward.__name__ == "forward"
    assert module.forward.__self__ is module


def _wrapped(module: Any) -> None:
    plain = module.forward

    @functools.wraps(plain)
    def anothers(*args: Any, **kwargs: Any) -> Any:
        return plain(*args, **kwargs)

    module.forward = anothers


ANOTHERS = {
    "a hook": lambda module: module.register_forward_hook(lambda *_: None),
    "a hook before": lambda module: module.register_forward_pre_hook(lambda *_: None),
    "a hook of gradients": lambda module: module.register_full_backward_hook(lambda *_: None),
    "a forward pass": _wrapped,
    "a compiled call": lambda module: module.compile(backend="eager"),
}


@pytest.mark.parametrize("what", ANOTHERS)
def test_where_something_of_anothers_stands_hooks_of_torch_are_used(what: str) -> None:
    module, seen = Scaled(), Seen()
    ANOTHERS[what](module)
    before = dict(vars(module))
    handle = forwards.after(module, seen)
    assert not isinstance(vars(module).get("forward"), Forward)
    module(torch.ones(1))
    assert len(seen.calls) == 1
    handle.remove()
    assert vars(module).get("forward") is before.get("forward")


def test_what_another_puts_around_it_goes_on_and_may_stay() -> None:
    module, seen = Scaled(), Seen()
    handle = forwards.after(module, seen)
    _wrapped(module)
    anothers = vars(module)["forward"]
    module(torch.ones(1))
    assert len(seen.calls) == 1
    handle.remove()
    assert vars(module)["forward"] is anothers
    assert torch.equal(module(torch.ones(1)), torch.full((1,), 2.0))
    assert len(seen.calls) == 1


def test_its_own_forward_pass_on_the_instance_is_nobodys() -> None:
    module = Scaled()
    module.forward = module.forward  # as capturing outputs in transformers leaves it
    handle = forwards.before(module, Seen())
    assert isinstance(vars(module)["forward"], Forward)
    handle.remove()
    assert torch.equal(module(torch.ones(1)), torch.full((1,), 2.0))


def test_a_forward_pass_that_a_class_is_given_meanwhile_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    module, seen = Scaled(), Seen()
    forwards.after(module, seen)
    monkeypatch.setattr(Scaled, "forward", lambda self, x: x - self.weight)
    assert torch.equal(module(torch.ones(1)), torch.full((1,), -1.0))
    assert len(seen.calls) == 1


def _saved(model: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "torch.save": _saved}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_calls_its_own_forward_pass(how: str) -> None:
    model = BY_NAME["llama"].build()
    with instrument(model, level="deep", exporter=InMemoryExporter()):
        model.generate(prompts(1, 5), **GREEDY)
        assert any(isinstance(vars(m).get("forward"), Forward) for m in model.modules())
        twin = COPIES[how](model)
    assert not any(probes_on(module) for module in twin.modules() if "forward" in vars(module))
    originals = {id(module) for module in model.modules()}
    for module in twin.modules():
        forward = vars(module).get("forward")
        assert forward is None or id(forward.__self__) not in originals
    wanted = model(prompts(1, 5)).logits
    assert torch.equal(twin(prompts(1, 5)).logits, wanted)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(twin(prompts(1, 5)).logits, wanted)
    exporter: Any = InMemoryExporter()
    with instrument(twin, level="heads", exporter=exporter):
        twin.generate(prompts(1, 5), **GREEDY)
    assert all(frame.head_write is not None for frame in exporter.frames)


def test_a_replica_of_data_parallel_calls_its_own_forward_pass() -> None:
    model = BY_NAME["llama"].build()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.5)
    wanted = twin(prompts(1, 5)).logits

    def replicated(module: Any, weights: Any) -> Any:  # as torch.nn.parallel.replicate does, on one device
        found = module._replicate_for_data_parallel()
        for name, parameter in weights._parameters.items():
            object.__setattr__(found, name, parameter)
            found._parameters[name] = parameter
        for name, child in module._modules.items():
            found._modules[name] = replicated(child, weights._modules[name])
        return found

    with instrument(model, level="deep", exporter=InMemoryExporter()):
        model.generate(prompts(1, 5), **GREEDY)
        replica = replicated(model, twin)
        assert torch.equal(replica(prompts(1, 5)).logits, wanted)
        assert any(isinstance(vars(m).get("forward"), Forward) for m in model.modules())


def test_a_forward_pass_that_is_put_in_its_place_is_observed_by_hooks_from_then_on() -> None:
    model, exporter = BY_NAME["llama"].build(), InMemoryExporter()
    before = trace_of(model)
    mlp: Any = model.model.layers[1].mlp
    with instrument(model, level="heads", exporter=exporter):
        model.generate(prompts(1, 5), **GREEDY)
        mlp.forward = functools.partial(type(mlp).forward, mlp)  # as a kernel of another's
        model.generate(prompts(1, 5), **GREEDY)
    known = [frame.ffn_write is not None for frame in exporter.frames]  # type: ignore[attr-defined]
    assert known == [True] * 4 + [False] + [True] * 3
    del mlp.forward
    assert trace_of(model) == before
