"""The shape of a model: layers, heads, caches. Sent once, addressed by its hash."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

BLACK_BOX: Final = "black box"


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """What a model is made of.

    Attributes
    ----------
    layers, heads, kv_heads, head_dim, hidden_size, ffn_size, vocab_size : int
        `heads` is the most attention heads that any layer has.
    experts, experts_per_token : int
        0 for a dense model.
    layer_kinds : tuple of str, length `layers`
        ``full``, ``sliding``, ``linear`` or ``none`` (a layer without attention heads).
    layer_heads : tuple of int, length `layers`
        Attention heads per layer; 0 where there are none.
    layer_windows : tuple of int, length `layers`
        Sliding window in tokens, 0 where the layer attends to everything.
    parameters : int
        Number of parameters.
    weights_fingerprint : str
        Hash over a sample of the weights: equal for equal weights.
    dtype : str
        ``float32``, ``bfloat16``, …
    context_length : int
        Longest sequence in tokens, 0 where unknown.
    unavailable : tuple of (channel, reason)
        What this attachment cannot measure soundly, and why.
    """

    model_name: str
    architecture: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    ffn_size: int
    vocab_size: int
    experts: int = 0
    experts_per_token: int = 0
    layer_kinds: tuple[str, ...] = ()
    layer_heads: tuple[int, ...] = ()
    layer_windows: tuple[int, ...] = ()
    parameters: int = 0
    weights_fingerprint: str = ""
    dtype: str = ""
    context_length: int = 0
    unavailable: tuple[tuple[str, str], ...] = field(default=())

    @property
    def is_black_box(self) -> bool:
        """Whether its inside cannot be reached: one layer without heads stands for the whole model."""
        return self.architecture == BLACK_BOX and self.heads == 0

    def __post_init__(self) -> None:
        for name, fill in (("layer_kinds", "full"), ("layer_heads", self.heads), ("layer_windows", 0)):
            value = getattr(self, name)
            if not value:
                object.__setattr__(self, name, (fill,) * self.layers)
            elif len(value) != self.layers:
                raise ValueError(f"{name} has {len(value)} entries for {self.layers} layers")
