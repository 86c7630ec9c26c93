"""Whatever the model, the batch, its padding and the way of decoding: what is captured is what the reference
finds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.reference import gate  # noqa: E402
from tests.reference.families import FAMILIES, VOCABULARY, build  # noqa: E402

BOUNDS = {torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 2e-2}
SHAPED = sorted(
    name
    for name, family in FAMILIES.items()
    if "num_hidden_layers" in family.settings and "layer_types" not in family.settings
)
PLAIN = sorted(set(FAMILIES) - set(SHAPED))
FIXED_HEADS = {"deepseek_v3", "bamba", "qwen3_next"}  # whose heads other settings follow from


@st.composite
def shapes(draw: Any) -> tuple[str, str, dict[str, Any]]:
    """A family, an attention implementation, and settings in place of those of the table."""
    name = draw(st.sampled_from(SHAPED + PLAIN))
    family = FAMILIES[name]
    how = draw(st.sampled_from(family.implementations))
    changes: dict[str, Any] = {}
    if name in SHAPED and name not in FIXED_HEADS:
        changes["num_hidden_layers"] = draw(st.integers(2, 3)) if name != "jamba" else 3
        heads = draw(st.sampled_from([2, 4, 6]))
        changes["num_attention_heads"] = heads
        if "num_key_value_heads" in family.settings:
            changes["num_key_value_heads"] = draw(
                st.sampled_from([k for k in (1, 2, 3, 6) if heads % k == 0])
            )
        if "num_kv_heads" in family.settings:
            changes["num_kv_heads"] = draw(st.sampled_from([k for k in (1, 2) if heads % k == 0]))
        if "head_dim" in family.settings:
            changes["head_dim"] = draw(st.sampled_from([4, 10, 16]))
    if "sliding_window" in family.settings:
        changes["sliding_window"] = draw(st.sampled_from([3, 5, 8, 64]))
    return name, how, changes


@st.composite
def batches(draw: Any) -> tuple[Any, Any]:
    """Ids and mask of one to three prompts, padded on the left to the longest."""
    lengths = draw(st.lists(st.integers(1, 14), min_size=1, max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, -length:] = torch.randint(2, VOCABULARY, (length,), generator=generator)
    return ids, (ids > 0).long()


ways = st.fixed_dictionaries(
    {"new_tokens": st.integers(1, 5)},
    optional={
        "do_sample": st.just(True),
        "num_return_sequences": st.just(1),
        "temperature": st.sampled_from([0.7, 1.5]),
        "repetition_penalty": st.just(1.3),
        "cache_implementation": st.just("static"),
        "eos_token_id": st.integers(2, VOCABULARY - 1),
    },
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    shape=shapes(), batch=batches(), way=ways, dtype=st.sampled_from(list(BOUNDS)), seed=st.integers(0, 3),
    copies=st.integers(1, 2),
)  # fmt: skip
def test_what_is_captured_is_what_the_reference_finds(
    shape: Any, batch: Any, way: dict[str, Any], dtype: Any, seed: int, copies: int
) -> None:
    name, how, changes = shape
    model: Any = build(name, dtype=dtype, attn_implementation=how, seed=seed, settings=changes)
    ids, mask = batch
    if way.get("do_sample"):
        way = {**way, "num_return_sequences": copies}
    if not model._can_compile_fullgraph or name == "falcon_alibi":
        way.pop("cache_implementation", None)  # a cache of fixed size is not for every family
    found = gate.compare(model, ids, mask, **way)
    assert found.same_tokens
    rows = len(ids) * way.get("num_return_sequences", 1)
    assert {frame.sequence for frame in found.frames} == set(range(rows))
    assert len(found.frames) <= rows * way["new_tokens"]
    if "eos_token_id" not in way:
        assert len(found.frames) == rows * way["new_tokens"]
    for channel, agreement in gate.agreements(found).items():
        note(f"{channel}: {agreement}")
        assert agreement.relative <= BOUNDS[dtype], (channel, agreement)
    if found.frames[0].residue is not None:
        assert gate.residues(found).max() <= BOUNDS[dtype]
