"""A viewer of everything: watches a collector and decodes all that comes, until it is ended."""

from __future__ import annotations

import sys
from typing import Any

from fulgurite.cli.address import Address
from fulgurite.cli.client import Collector
from fulgurite.wire.codec import decode_batch


def watch(port: int) -> None:
    """Of the collector at this port."""
    schemas: dict[str, Any] = {}
    with Collector(Address("127.0.0.1", port)) as line:
        for message in line.watch(history_s=1.0):
            kind = message.WhichOneof("message")
            if kind == "replica":
                schemas[message.replica.key] = message.replica.schema
            elif kind == "batch":
                decode_batch(message.batch.batch, schemas[message.batch.key])


if __name__ == "__main__":
    watch(int(sys.argv[1]))
