"""The channels: every quantity that a frame may carry, with its formula, unit, shape and place on the wire.

This table is the one place where a channel is defined. The codec writes what it lists, the viewer's legend
prints its formulas and units, and the documentation is checked against it. A quantity that is not here cannot
glow.

Shape letters: L layers, H heads (the most of any layer), K top-k entries (`TOP_K`), E experts per token,
B buckets of key-value heat (`KV_HEAT_BUCKETS`), N top neurons (`TOP_NEURONS`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

if TYPE_CHECKING:
    from fulgurite.wire.topology import Topology

TOP_K = 8
TOP_NEURONS = 8
# Buckets of kv_heat, by distance d from the query: 0: position 0; 1 to 15: 2**(18-b) <= d < 2**(19-b), the
# first of them open; the last KV_HEAT_RECENT: d = 23-b. NaN: no key in it that the query sees.
KV_HEAT_BUCKETS = 24
KV_HEAT_RECENT = 8

Level = Literal["off", "pulse", "heads", "deep"]
LEVELS: tuple[Level, ...] = ("off", "pulse", "heads", "deep")
PHASES = ("prefill", "decode")

Family = Literal["identity", "activity", "contribution", "routing", "memory", "uncertainty", "time"]
Letter = Literal["L", "2", "H", "K", "E", "B", "N"]


@dataclass(frozen=True, slots=True)
class Channel:
    """One named quantity.

    Attributes
    ----------
    name : the field of `Frame` and the column on the wire.
    family : what it may be drawn as (see the channel table in `docs/`).
    dims : shape per frame in the letters of this module; empty for a scalar.
    exact : numpy dtype of the column in the `exact` encoding, little-endian.
    compact : the same in the `compact` encoding; `log8` is one byte on a logarithmic scale.
    unit : unit of the value; ``"1"`` for a ratio.
    level : the lowest level at which it is captured.
    formula : what is computed, in the notation of the documentation.
    """

    name: str
    family: Family
    dims: tuple[Letter, ...]
    exact: str
    compact: str
    unit: str
    level: Level
    formula: str

    def shape(self, topology: Topology) -> tuple[int, ...]:
        """Shape per frame for this topology."""
        sizes: dict[str, int] = {
            "L": topology.layers,
            "H": topology.heads,
            "2": 2,
            "K": TOP_K,
            "E": topology.experts_per_token,
            "B": KV_HEAT_BUCKETS,
            "N": TOP_NEURONS,
        }
        return tuple(sizes[letter] for letter in self.dims)


def _c(
    name: str,
    family: Family,
    dims: str,
    exact: str,
    compact: str,
    unit: str,
    level: Level,
    formula: str,
) -> Channel:
    letters: tuple[Letter, ...] = cast("tuple[Letter, ...]", tuple(dims.split()))
    return Channel(name, family, letters, exact, compact, unit, level, formula)


CHANNELS: tuple[Channel, ...] = (
    # who and when
    _c("request_index", "identity", "", "u2", "u2", "1", "pulse", "index into the batch's requests"),
    _c("sequence", "identity", "", "u2", "u2", "1", "pulse", "row of the request, as returned"),
    _c("position", "identity", "", "i4", "i4", "tokens", "pulse", "0-based, prompt included, padding not"),
    _c("token_id", "identity", "", "i4", "i4", "1", "pulse", "the emitted token; -1 where not switched on"),
    _c("phase", "identity", "", "u1", "u1", "1", "pulse", "0 prefill, 1 decode"),
    _c("level", "identity", "", "u1", "u1", "1", "pulse", "index into off, pulse, heads, deep"),
    _c("step", "identity", "", "i8", "i8", "1", "pulse", "forward pass of this attachment"),
    _c("parent_row", "identity", "", "i2", "i2", "1", "pulse",
       "beam row that this one continues; -1: its own"),
    _c("started_ns", "time", "", "i8", "i8", "ns", "pulse", "start of the forward pass, UNIX time"),
    _c("ended_ns", "time", "", "i8", "i8", "ns", "pulse", "the token was committed, UNIX time"),
    _c("batch_size", "time", "", "u2", "u2", "1", "pulse", "rows of the forward pass"),
    # uncertainty
    _c("logprob", "uncertainty", "", "f4", "f4", "nats", "pulse", "log_softmax(raw logits)[y]"),
    _c("logprob_sampled", "uncertainty", "", "f4", "f4", "nats", "pulse",
       "log-probability of y in the distribution sampled from, where processors apply"),
    _c("entropy", "uncertainty", "", "f4", "f4", "nats", "heads", "-sum p ln p of the raw logits"),
    _c("margin", "uncertainty", "", "f4", "f4", "nats", "heads", "largest minus second log-probability"),
    _c("rank", "uncertainty", "", "i4", "i4", "1", "heads", "tokens more probable than y"),
    _c("top_ids", "uncertainty", "K", "i4", "i4", "1", "heads",
       "most probable tokens; -1 where not switched on"),
    _c("top_logprobs", "uncertainty", "K", "f2", "f2", "nats", "heads", "their log-probabilities"),
    _c("lens_rank", "uncertainty", "L K", "i4", "i4", "1", "deep",
       "rank of each of top_ids among them, read after a layer"),
    _c("lens_prob", "uncertainty", "L K", "f2", "f2", "1", "deep",
       "softmax over top_ids alone, read after a layer"),
    # activity
    _c("head_write", "activity", "L H", "f2", "log8", "1", "heads", "||o_h|| / ||r+||"),
    _c("ffn_write", "activity", "L", "f2", "log8", "1", "heads", "||m|| / ||r+||"),
    _c("ffn_cosine", "activity", "L", "f2", "f2", "1", "heads", "cos(m, r), r before the addition"),
    _c("residual_norm", "activity", "L 2", "f4", "f4", "1", "heads",
       "||r+|| after attention, after the FFN"),
    _c("neuron_ids", "activity", "L N", "i4", "i4", "1", "deep", "neurons of largest |a_i| ||w_down,i||"),
    _c("neuron_values", "activity", "L N", "f2", "f2", "residual units", "deep", "|a_i| ||w_down,i||"),
    # contribution
    _c("head_contribution", "contribution", "L H", "f4", "f4", "logits", "deep",
       "<o_h, g*(u_y - u_mean)> / s"),
    _c("ffn_contribution", "contribution", "L", "f4", "f4", "logits", "deep", "<m, g*(u_y - u_mean)> / s"),
    _c("embedding_contribution", "contribution", "", "f4", "f4", "logits", "deep",
       "<e, g*(u_y - u_mean)> / s"),
    _c("other_contribution", "contribution", "", "f4", "f4", "logits", "deep",
       "biases, the final norm's bias, rounding in the model's number format"),
    _c("residue", "contribution", "", "f4", "f4", "1", "deep",
       "(centred logit - all contributions) / standard deviation of the logits"),
    _c("logit_centered", "contribution", "", "f4", "f4", "logits", "deep", "logit_y - mean logit"),
    # routing
    _c("attention_entropy", "routing", "L H", "f2", "f2", "nats", "deep",
       "-sum w ln w over the keys of the last query's row"),
    _c("sink_mass", "routing", "L H", "f2", "f2", "1", "deep",
       "weight of position 0; 0 where a window hides it"),
    _c("learned_sink_mass", "routing", "L H", "f2", "f2", "1", "deep",
       "1 - sum of the weights: what a learned sink took"),
    _c("attended_positions", "routing", "L H K", "i4", "i4", "tokens", "deep", "positions of largest weight"),
    _c("attended_weights", "routing", "L H K", "f2", "log8", "1", "deep", "their attention weights"),
    _c("measured_layers", "routing", "L", "u1", "u1", "1", "deep",
       "1 where attention was captured in this frame"),
    _c("expert_ids", "routing", "L E", "i2", "i2", "1", "heads", "experts that the router chose"),
    _c("expert_weights", "routing", "L E", "f2", "f2", "1", "heads", "their gate weights as applied"),
    # memory
    _c("kv_tokens", "memory", "L", "i4", "i4", "tokens", "pulse", "cached positions after this forward"),
    _c("kv_bytes", "memory", "", "i8", "i8", "bytes", "pulse", "bytes of this sequence's cache"),
    _c("kv_heat", "memory", "L B", "f2", "log8", "1", "deep",
       "mean over the heads of the attention mass in a bucket of positions"),
)  # fmt: skip

BY_NAME: dict[str, Channel] = {channel.name: channel for channel in CHANNELS}


def channels_of(level: Level) -> tuple[Channel, ...]:
    """The channels that `level` may carry: its own and those of every lower level."""
    reach = LEVELS.index(level)
    return tuple(c for c in CHANNELS if LEVELS.index(c.level) <= reach)
