"""Which processes share a model by tensor parallelism, and where the first of them can be reached.

Read from the weights themselves: what they are split over is a group of ranks. The meeting place is the store
that the process group was made with; nothing collective is called, so that a rank without an agent stops
nobody.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fulgurite.agent.anatomy import Anatomy

_LOOPBACK = ("", "localhost", "127.0.0.1", "::1")
_made: Counter[str] = Counter()


@dataclass(frozen=True, slots=True)
class RankGroup:
    """The processes of one model.

    Attributes
    ----------
    places : of all of them, in the order of their heads; the first one is the replica.
    place : of this one.
    name : the same in all of them, and of no other model.
    store : of the process group.
    """

    places: tuple[int, ...]
    place: int
    name: str
    store: Any

    @property
    def leads(self) -> bool:
        """Whether this is the first."""
        return self.place == self.places[0]


def group_of(anatomy: Anatomy) -> RankGroup | None:
    """The group that `anatomy`'s heads are split over; None where one process has them all."""
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized():
        return None
    for layer in anatomy.layers:
        if layer.projection is None or layer.held_heads == layer.heads:
            continue
        weight: Any = layer.projection.weight
        axis = next(i for i, placed in enumerate(weight.placements) if placed.is_shard())
        places = tuple(dist.get_process_group_ranks(weight.device_mesh.get_group(axis)))
        key = f"fulgurite/{'-'.join(map(str, places))}/{anatomy.topology.model_name}"
        name = f"{key}/{_made[key]}"
        _made[key] += 1
        return RankGroup(places, dist.get_rank(), name, _store())
    return None


def _store() -> Any:
    """A connection of our own to the group's store, so that nothing of the host's waits for ours."""
    from torch.distributed import distributed_c10d

    store: Any = distributed_c10d._get_default_store()
    try:
        return store.clone()
    except (AttributeError, RuntimeError, NotImplementedError):
        return store


@dataclass(frozen=True, slots=True)
class Door:
    """Where the first rank is reached, and the word that opens."""

    host: str
    port: int
    word: str


def open_door(group: RankGroup) -> tuple[socket.socket, Door]:
    """Listen, and tell the others where."""
    host = _own_address()
    listener = socket.create_server((host, 0))
    door = Door(host, listener.getsockname()[1], secrets.token_hex(16))
    group.store.set(group.name, json.dumps([door.host, door.port, door.word]))
    return listener, door


def find_door(group: RankGroup, pause: Callable[[float], bool]) -> Door | None:
    """Ask for the first rank's door until it is there; None where `pause` says to stop."""
    for tries in itertools.count():
        if group.store.check([group.name]):
            return Door(*json.loads(group.store.get(group.name)))
        if pause(min(0.05 * 2**tries, 2.0)):
            return None
    return None


def is_on_one_machine() -> bool:
    """Whether all processes are on this machine, so that what they tell each other does not leave it."""
    is_all = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE", "unset")
    return os.environ.get("MASTER_ADDR", "") in _LOOPBACK or is_all


def _own_address() -> str:
    """The address under which the other ranks reach this machine: loopback where they are all on it."""
    if is_on_one_machine():
        return "127.0.0.1"
    first = os.environ["MASTER_ADDR"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((first, 9))  # sends nothing: it says by which way it would go
        return str(probe.getsockname()[0])
