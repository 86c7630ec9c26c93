"""Probes around the forward pass of a module: in its place where that is safe, else as torch's hooks.

A module with a hook is called by torch in a longer way, of which no cache holds anything any more between two
layers of a model: about 10 µs for each such module, several times what a probe takes itself. What stands in
the place of `forward`, on the instance, takes half of it or less. That is done where nothing else stands
there and no hook of anybody else's is on the module: those may change what a module is handed, or what it
gives.

A copy of the model (pickle, `copy.deepcopy`) has its own forward pass there, and nothing of ours. Replicas of
`torch.nn.DataParallel` share what their original has on the instance: `release` takes it from them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any, Protocol

import torch
from torch import nn

Probe = Callable[..., None]
_lock = threading.Lock()


class Handle(Protocol):
    """Takes a probe out."""

    def remove(self) -> None:
        """Once or more often."""


class Forward:
    """Stands in the place of a module's `forward`, and calls that of its class, whichever that is by then.

    Attributes
    ----------
    before : called with (module, args, kwargs).
    after : called with (module, args, output).
    after_all : called with (module, args, kwargs, output).
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.before: tuple[Probe, ...] = ()
        self.after: tuple[Probe, ...] = ()
        self.after_all: tuple[Probe, ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward pass."""
        module = self.module
        for probe in self.before:
            probe(module, args, kwargs)
        output = type(module).forward(module, *args, **kwargs)
        for probe in self.after:
            probe(module, args, output)
        if self.after_all:
            for probe in self.after_all:
                probe(module, args, kwargs, output)
        return output

    # What is asked of a method: whose it is, what it is called, and (`inspect`) its signature.

    @property
    def __self__(self) -> nn.Module:
        return self.module

    @property
    def __func__(self) -> Callable[..., Any]:
        return type(self.module).forward

    @property
    def __name__(self) -> str:
        return self.__func__.__name__

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        return MethodType(self.__func__, self.module)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.module, "forward")  # of a copy that has nothing on its instance yet

    @property
    def is_idle(self) -> bool:
        """Whether no probe is left."""
        return not (self.before or self.after or self.after_all)


class _Held:
    """One probe of one `Forward`."""

    __slots__ = ("_forward", "_kind", "_probe")

    def __init__(self, forward: Forward, kind: str, probe: Probe) -> None:
        self._forward, self._kind, self._probe = forward, kind, probe

    @property
    def is_displaced(self) -> bool:
        forward = self._forward
        return self._probe in getattr(forward, self._kind) and (
            forward.module.__dict__.get("forward") is not forward
        )

    def remove(self) -> None:
        forward = self._forward
        with _lock:
            left = tuple(one for one in getattr(forward, self._kind) if one is not self._probe)
            setattr(forward, self._kind, left)
            own = forward.module.__dict__
            if forward.is_idle and own.get("forward") is forward:
                del own["forward"]  # what somebody put around it meanwhile goes on calling it


def before(module: nn.Module, probe: Probe, *, with_kwargs: bool = True) -> Handle:
    """Have `probe` called with what `module` is handed: (module, args) and, `with_kwargs`, the rest."""
    return _stand(module, "before", probe) or module.register_forward_pre_hook(probe, with_kwargs=with_kwargs)


def after(module: nn.Module, probe: Probe, *, with_kwargs: bool = False) -> Handle:
    """Have `probe` called with what `module` was handed and gave."""
    kind = "after_all" if with_kwargs else "after"
    return _stand(module, kind, probe) or module.register_forward_hook(probe, with_kwargs=with_kwargs)


def is_displaced(handle: Handle) -> bool:
    """Whether somebody put something else in the place of the `Forward` that this probe is at: it may call
    that, or not."""
    return isinstance(handle, _Held) and handle.is_displaced


def release(replica: nn.Module) -> None:
    """Let a replica, whose instance has what its original has, call its own forward pass."""
    for part in replica.modules():
        if isinstance(part.__dict__.get("forward"), Forward):
            del part.__dict__["forward"]


def _stand(module: nn.Module, kind: str, probe: Probe) -> Handle | None:
    with _lock:
        forward = module.__dict__.get("forward")
        if not isinstance(forward, Forward):
            if not _is_plain(module):
                return None
            forward = module.__dict__["forward"] = Forward(module)
        setattr(forward, kind, (*getattr(forward, kind), probe))
    return _Held(forward, kind, probe)


def _is_plain(module: nn.Module) -> bool:
    """Whether the forward pass of the module's class is called, and nothing else in its place or around
    it."""
    function = getattr(type(module), "forward", None)
    if not isinstance(function, FunctionType) or isinstance(module, torch.jit.ScriptModule):
        return False
    if hasattr(module, "_hf_hook") or module._compiled_call_impl is not None:
        return False
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    if module._backward_hooks or module._backward_pre_hooks:
        return False
    own = module.__dict__.get("forward")
    return own is None or (isinstance(own, MethodType) and own.__func__ is function)
