"""Frames that were measured: one generation of the bundled model, at level `heads`."""

from __future__ import annotations

from fulgurite.wire.frame import FrameBlock
from fulgurite.wire.topology import Topology


def record(tokens: int = 64, *, rows: int = 8) -> tuple[Topology, tuple[FrameBlock, ...]]:
    """The topology of the bundled model, and the blocks of `tokens` steps of `rows` sequences."""
    import torch

    from fulgurite.agent import InMemoryExporter, instrument
    from fulgurite.cli.demo.model import load

    torch.set_num_threads(1)
    model, tokenizer = load(None)
    encoded = tokenizer(["Once upon a time a storm came."] * rows, return_tensors="pt", padding=True)
    exporter = InMemoryExporter()
    torch.manual_seed(0)
    with instrument(model, level="heads", exporter=exporter):
        model.generate(
            input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"],
            do_sample=True, min_new_tokens=tokens, max_new_tokens=tokens,
        )  # fmt: skip
    return exporter.topology, exporter.blocks
