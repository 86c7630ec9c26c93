"""The matrix that a linear map applies, wherever its weights are: plain, under adapters, quantised,
offloaded, or one process's part of them.

Nothing here starts a collective or asks a model to load anything for good: what a process does not hold, or
what cannot be turned into numbers, is `Unreadable`, with the reason. Costs one float32 copy of the weights
that are asked for; an adapter that is not a sum of matrices is asked what it does to each unit vector.

Shape letters: d width of the output, i of the input.
"""

from __future__ import annotations

from operator import attrgetter, is_
from typing import Any

import torch
from torch import nn

_AT_ONCE = 512  # unit vectors that a map is asked about in one call
_SAMPLED = 32  # values of each weight that tell whether somebody wrote past the version counter
_ORDINARY = (torch.Tensor, nn.Parameter)
_VERSION = attrgetter("_version")
_AS_INTEGER = {torch.bfloat16: torch.int16, torch.float8_e4m3fn: torch.int8, torch.float8_e5m2: torch.int8}


class Unreadable(Exception):
    """The weights of a linear map cannot be had as numbers; says why."""


def tensor_of(module: nn.Module, name: str) -> torch.Tensor | None:
    """A parameter of `module` as an ordinary tensor of numbers; None where it has none.

    Raises
    ------
    Unreadable
        Where it is elsewhere.
    """
    found = getattr(module, name, None)
    if callable(found) and not isinstance(found, torch.Tensor):
        found = found()  # packed weights of torch.ao: a method gives them
    if not isinstance(found, torch.Tensor):
        return None
    if is_distributed(found):
        found = found.to_local()  # type: ignore[attr-defined]
    if found.device.type == "meta":
        found = _offloaded(module, name)
    if found.is_quantized or _unpacks_itself(found):
        return found.detach().dequantize()
    if not found.is_floating_point():
        raise Unreadable(f"its weights are packed as {str(found.dtype).removeprefix('torch.')}")
    return found.detach()


def is_distributed(tensor: torch.Tensor) -> bool:
    """Whether several processes hold it: arithmetic on it may wait for all of them."""
    return hasattr(tensor, "to_local") and hasattr(tensor, "placements")


def is_quantised(module: nn.Module) -> bool:
    """Whether its weights are stored in less than the model computes in: then its input may be rounded
    too."""
    weight = getattr(_innermost(module), "weight", None)
    if callable(weight) and not isinstance(weight, torch.Tensor):
        weight = weight()
    if not isinstance(weight, torch.Tensor):
        return False
    return bool(weight.is_quantized or _unpacks_itself(weight) or not weight.is_floating_point())


def _innermost(module: nn.Module) -> nn.Module:
    base = getattr(module, "base_layer", None)
    return _innermost(base) if isinstance(base, nn.Module) else module


def _unpacks_itself(tensor: torch.Tensor) -> bool:
    return not is_distributed(tensor) and type(tensor).dequantize is not torch.Tensor.dequantize


def _offloaded(module: nn.Module, name: str) -> torch.Tensor:
    """What a hook of accelerate would bring in for the next pass."""
    hook = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", None) or (hook,):
        kept = getattr(one, "weights_map", None)
        if kept is not None:
            try:
                found = kept[name]
            except KeyError:
                continue
            if isinstance(found, torch.Tensor) and found.device.type != "meta":
                return found
    raise Unreadable("its weights are not in this process between passes")


@torch.no_grad()
def effective_weight(projection: nn.Module, *, widened: bool = True) -> torch.Tensor:
    """The matrix (d, i) that `projection` applies, as float32: of the columns that this process holds.

    Parameters
    ----------
    widened : otherwise weights that are stored as numbers of another type stay what and where they are.

    Raises
    ------
    Unreadable
        Where it cannot be had, or where the map is not one matrix.
    """
    with torch.inference_mode(False), torch.autocast(_device_type(projection), enabled=False):
        if not list(projection.children()):
            found = _of_leaf(projection)
            return found.float() if widened else found
        if any(is_distributed(p) for p in projection.parameters()):
            raise Unreadable("an adapter is on top of weights that are split over several processes")
        return _of_adapter(projection)


def _device_type(module: nn.Module) -> str:
    first = next(module.parameters(), None)
    return "cpu" if first is None or first.device.type == "meta" else first.device.type


def _of_leaf(projection: nn.Module) -> torch.Tensor:
    held = columns_of(projection)
    try:
        weight = tensor_of(projection, "weight")
    except Unreadable:
        if any(is_distributed(p) for p in projection.parameters()):
            raise
        weight = None
    if weight is None:
        return _by_function(projection)
    if weight.dim() != 2 or weight.untyped_storage().size() == 0:
        raise Unreadable("its weights are not in this process between passes")
    matrix = weight.T if is_transposed(projection) else weight
    declared = getattr(projection, "in_features", None)
    if held is None and isinstance(declared, int) and matrix.shape[1] != declared:
        raise Unreadable("its weights are not of the size that it declares: they may be split")
    return matrix


def _of_adapter(projection: nn.Module) -> torch.Tensor:
    """Of a base and what adapters add to it, where it can be told as a sum; the module itself confirms it."""
    if _adapters_by_row(projection):
        raise Unreadable("each row of the batch has an adapter of its own")
    base = getattr(projection, "base_layer", None)
    if isinstance(base, nn.Module) and callable(getattr(projection, "get_delta_weight", None)):
        found = effective_weight(base)
        for name in _added_adapters(projection):
            delta = projection.get_delta_weight(name).detach().float()  # type: ignore[operator]
            found = found + (delta.T if is_transposed(_innermost(base)) else delta).to(found.device)
        if _is_confirmed(projection, found):
            return found
    return _by_function(projection)


def _added_adapters(projection: nn.Module) -> list[str]:
    if getattr(projection, "disable_adapters", False) or getattr(projection, "merged", False):
        return []
    known = getattr(projection, "scaling", {})
    return [name for name in getattr(projection, "active_adapters", ()) if name in known]


def _by_function(projection: nn.Module) -> torch.Tensor:
    """What the map does to each unit vector, exact for whatever is linear. Hooks do not see the question."""
    columns = []
    try:
        with torch.random.fork_rng(enabled=projection.training):
            width, options = int(projection.in_features), _options(projection)  # type: ignore[arg-type]
            offset = projection.forward(torch.zeros(1, width, **options))
            for start in range(0, width, _AT_ONCE):
                units = torch.zeros(min(_AT_ONCE, width - start), width, **options)
                units.diagonal(start).fill_(1.0)
                columns.append((projection.forward(units) - offset).T.detach().float())
    except Exception as error:
        raise Unreadable(f"it could not be asked what it does ({type(error).__name__})") from error
    found = torch.cat(columns, 1)
    if not _is_confirmed(projection, found):
        raise Unreadable("it is not one linear map (dropout, or rounding of its input)")
    return found


def _options(projection: nn.Module) -> dict[str, Any]:
    tensors = [*projection.parameters(), *projection.buffers()]
    real = [t for t in tensors if t.device.type != "meta"]
    like = next((t for t in [*real, *tensors] if t.is_floating_point()), None)
    return {
        "dtype": torch.float32 if like is None else like.dtype,
        "device": real[0].device if real else torch.device("cpu"),
    }


def _is_confirmed(projection: nn.Module, weight: torch.Tensor) -> bool:
    """Whether the module gives for two vectors what `weight` gives."""
    options = _options(projection)
    try:
        places = torch.arange(weight.shape[1], device=options["device"], dtype=torch.float32)
        rows = torch.stack([torch.cos(places), torch.sin(2.3 * places)]).to(options["dtype"])
        with torch.random.fork_rng(enabled=projection.training):
            gave = projection.forward(rows) - projection.forward(torch.zeros_like(rows))
    except Exception as error:
        raise Unreadable(f"it could not be asked what it does ({type(error).__name__})") from error
    made = rows.float() @ weight.to(rows.device).T
    return bool((gave.float() - made).norm() <= tolerance(projection) * made.norm().clamp(min=1e-12))


def tolerance(projection: nn.Module) -> float:
    """Largest relative error of what a map gives against its matrix: rounding of its output, and of its input
    where it is quantised."""
    kind = _options(projection)["dtype"]
    return 0.05 if is_quantised(projection) else max(1e-3, 4 * torch.finfo(kind).eps)


def effective_bias(projection: nn.Module) -> torch.Tensor | None:
    """What `projection` gives for nothing, (d,); None where that is nothing."""
    if list(projection.children()):
        try:
            with torch.no_grad(), torch.random.fork_rng(enabled=projection.training):
                width, options = int(projection.in_features), _options(projection)  # type: ignore[arg-type]
                gave: torch.Tensor = projection.forward(torch.zeros(1, width, **options))[0].detach()
        except Exception as error:
            raise Unreadable(f"it could not be asked what it does ({type(error).__name__})") from error
        return gave if bool(gave.any()) else None
    return tensor_of(projection, "bias")


def columns_of(projection: nn.Module) -> tuple[int, int] | None:
    """(first, count) of the inputs whose columns this process holds; None where it holds all.

    Raises
    ------
    Unreadable
        Where the weights are split in another way.
    """
    split = _splits(projection)
    if split == ():
        return None
    inputs = 0 if is_transposed(projection) else 1
    if split is None or len(split) != 1 or split[0][1] != inputs:
        raise Unreadable("its weights are split over several processes, and not by heads")
    return _share(projection.weight, *split[0])


def rows_of(projection: nn.Module) -> tuple[int, int] | None:
    """(first, count) of the outputs whose rows this process holds, where others hold the rest; else None."""
    split = _splits(projection)
    return (
        _share(projection.weight, *split[0]) if split is not None and [d for _, d in split] == [0] else None
    )


def is_transposed(projection: nn.Module) -> bool:
    """Whether its weights have inputs first, as transformers' `Conv1D` has them."""
    return isinstance(getattr(projection, "nf", None), int)


def _splits(projection: nn.Module) -> tuple[tuple[int, int], ...] | None:
    """(axis of the mesh, axis of the weights) of each way in which they are split over processes; None where
    they are in parts that no process can read alone.
    """
    weight: Any = getattr(projection, "weight", None)
    if not isinstance(weight, torch.Tensor) or not is_distributed(weight):
        return ()
    placements: Any = weight.placements  # type: ignore[attr-defined]
    if not all(one.is_shard() or one.is_replicate() for one in placements):
        return None
    return tuple((axis, one.dim % weight.dim()) for axis, one in enumerate(placements) if one.is_shard())


def _share(weight: Any, axis: int, dim: int) -> tuple[int, int]:
    """(first, count) of the slices along `dim` that are here: as torch shares them out."""
    size = int(weight.shape[dim])
    share = -(-size // weight.device_mesh.size(axis))
    first = min(size, share * weight.device_mesh.get_local_rank(axis))
    return first, min(size, first + share) - first


def identity_of(projection: nn.Module) -> tuple[object, ...]:
    """Changes when the weights were written to or exchanged, or adapters switched: what was computed from
    them is stale then. Writes past the version counter (``weight.data``) are seen in host memory, in a
    sample."""
    marks: list[object] = [adapters_of(projection)]
    for tensor in (*projection.parameters(), *projection.buffers()):
        local: Any = tensor.to_local() if is_distributed(tensor) else tensor  # type: ignore[attr-defined]
        marks.append((_address(local), version_of(tensor), _sample(local)))
    return tuple(marks)


def adapters_of(projection: nn.Module) -> tuple[object, ...]:
    """Which adapters are in force, and how much of each."""
    scaling = getattr(projection, "scaling", None)
    return (
        tuple(getattr(projection, "merged_adapters", None) or ()),
        bool(getattr(projection, "disable_adapters", False)),
        tuple(getattr(projection, "active_adapters", None) or ()),
        tuple(scaling.items()) if isinstance(scaling, dict) else scaling,
        _adapters_by_row(projection),
    )


def _adapters_by_row(projection: nn.Module) -> bool:
    """Whether a hook of peft hands the map the name of an adapter for each row."""
    hooks = projection._forward_pre_hooks.values()
    return any("adapter_names" in (getattr(hook, "keywords", None) or ()) for hook in hooks)


def version_of(tensor: torch.Tensor) -> int:
    """How often it was written to in place, -1 where torch does not count."""
    return -1 if tensor.is_inference() else tensor._version


def _address(tensor: torch.Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # a tensor that packs others has none
        return id(tensor)


def _sample(tensor: torch.Tensor) -> bytes:
    is_readable = tensor.device.type == "cpu" and type(tensor) in _ORDINARY and not tensor.is_quantized
    if not is_readable or not tensor.numel():
        return b""
    flat = tensor.detach()
    flat = flat.view(-1) if flat.is_contiguous() else flat[..., 0].reshape(-1)
    picked = flat[:: max(1, flat.shape[0] // _SAMPLED)]
    kind = _AS_INTEGER.get(picked.dtype)
    return (picked if kind is None else picked.view(kind)).numpy().tobytes()


class Watched:
    """Linear maps whose weights may be written to during a run: one cheap question per pass."""

    def __init__(self) -> None:
        self._maps: tuple[nn.Module, ...] = ()
        self._adapted: tuple[nn.Module, ...] = ()
        self._held: tuple[dict[str, Any], ...] = ()
        self._owners: list[dict[str, Any]] = []
        self._names: list[str] = []
        self._tensors: list[Any] = []
        self._counted: list[torch.Tensor] = []
        self._versions: list[int] = []
        self._switched: list[tuple[object, ...]] = []

    def settle(self, maps: tuple[nn.Module, ...]) -> None:
        """From now on, changes of these are told."""
        if maps != self._maps or self._adapted:  # an adapter may have come to those that were there
            self._maps = maps
            parts = [part for one in maps for part in one.modules()]
            self._adapted = tuple(one for one in maps if hasattr(one, "merged_adapters"))
            self._held = tuple(
                part._parameters for part in parts if part._parameters and not hasattr(part, "_hf_hook")
            )
        places = [(held, name, tensor) for held in self._held for name, tensor in held.items()]
        self._owners = [held for held, _, _ in places]
        self._names = [name for _, name, _ in places]
        self._tensors = [tensor for _, _, tensor in places]
        self._counted = [t for t in self._tensors if t is not None and version_of(t) >= 0]
        self._versions = [version_of(t) for t in self._counted]
        self._switched = [adapters_of(one) for one in self._adapted]

    def has_changed(self) -> bool:
        """Whether weights were exchanged or written to, or adapters switched, since `settle`."""
        if not all(map(is_, map(dict.get, self._owners, self._names), self._tensors)):  # asked in every pass:
            return True  # no line of Python is run for a tensor
        if list(map(_VERSION, self._counted)) != self._versions:
            return True
        return bool(self._adapted) and [adapters_of(one) for one in self._adapted] != self._switched
