"""How parts are added to the residual stream is read off the values, and never guessed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from tests.agent.reference import BY_NAME  # noqa: E402
from torch import nn  # noqa: E402

from fulgurite.agent.anatomy import LayerParts, dissect  # noqa: E402
from fulgurite.agent.norms import fit_norm  # noqa: E402
from fulgurite.agent.readout import find_readout  # noqa: E402
from fulgurite.agent.weights import effective_weight  # noqa: E402
from fulgurite.agent.wiring import Tap, wire  # noqa: E402

WIDTH = 32


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def layer(norms: int = 0) -> LayerParts:
    parts: dict[str, Any] = {
        name: nn.Identity() for name in ("block", "mixer", "projection", "ffn", "ffn_linear")
    }
    return LayerParts(
        index=0, kind="full", window=0, heads=2, head_dim=4, experts=(),
        norms=tuple(nn.LayerNorm(WIDTH) for _ in range(norms)), **parts,
    )  # fmt: skip


def solve(seen: dict[str, Any], norms: int = 0, constants: tuple[float, ...] = ()) -> Any:
    taps = {Tap(*name.split(".")): value for name, value in seen.items()}  # type: ignore[arg-type]
    return wire(layer(norms), taps, epsilon=1.2e-7, constants=constants)


def test_parts_that_are_added_one_after_the_other(random: np.random.Generator) -> None:
    start, mixed, fed = random.normal(size=(3, 4, WIDTH))
    mid = start + mixed
    found = solve(
        {
            "block.in": start, "block.out": mid + fed, "projection.out": mixed, "ffn.out": fed,
            "ffn.in": random.normal(size=(4, WIDTH)), "norm0.in": start,
            "norm0.out": random.normal(size=(4, WIDTH)), "norm1.in": mid,
            "norm1.out": random.normal(size=(4, WIDTH)),
        },
        norms=2,
    )  # fmt: skip
    assert found.order == "sequential"
    assert found.after_mixer == found.before_ffn == Tap("norm1", "in")
    assert (found.mixer.factor, found.ffn.factor) == (1.0, 1.0)


def test_parts_that_are_added_together(random: np.random.Generator) -> None:
    start, mixed, fed = random.normal(size=(3, 4, WIDTH))
    found = solve(
        {"block.in": start, "block.out": start + mixed + fed, "projection.out": mixed, "ffn.out": fed}
    )
    assert found.order == "parallel"
    assert (found.after_mixer, found.before_ffn) == (Tap("block", "out"), Tap("block", "in"))


def test_a_declared_multiplier_is_found_and_one_that_nobody_declared_is_not_believed(
    random: np.random.Generator,
) -> None:
    start, mixed, fed = random.normal(size=(3, 4, WIDTH))
    mid = start + 0.22 * mixed
    seen = {
        "block.in": start, "block.out": mid + 0.22 * fed, "projection.out": mixed, "ffn.out": fed,
        "norm0.in": mid, "norm0.out": random.normal(size=(4, WIDTH)),
    }  # fmt: skip
    found = solve(seen, norms=1, constants=(0.22,))
    assert (found.order, found.mixer.factor, found.ffn.factor) == ("sequential", 0.22, 0.22)
    unknown = solve(seen, norms=1)
    assert unknown.order == "unknown"
    assert unknown.mixer is unknown.ffn is None
    assert unknown.reasons["head_write"].endswith("was not confirmed by its values")


def test_a_part_that_is_gated_per_coordinate_is_left_out(random: np.random.Generator) -> None:
    start, mixed, fed, gate = random.normal(size=(4, 4, WIDTH))
    mid = start + gate * mixed
    found = solve(
        {"block.in": start, "block.out": mid + fed, "projection.out": mixed, "ffn.out": fed, "ffn.in": mid}
    )
    assert found.order == "unknown"


def test_norms_after_each_addition_are_recognised(random: np.random.Generator) -> None:
    """The first transformers, and OPT's smallest: there the stream is no sum over the layers."""
    start, mixed, fed = random.normal(size=(3, 4, WIDTH))
    norm = nn.LayerNorm(WIDTH)

    def apply(x: Any) -> Any:
        return norm(torch.tensor(x, dtype=torch.float32)).detach().double().numpy()

    first = apply(start + mixed)
    last = apply(first + fed)
    found = solve(
        {
            "block.in": start, "block.out": last, "projection.out": mixed, "ffn.out": fed, "ffn.in": first,
            "norm0.in": start + mixed, "norm0.out": first, "norm1.in": first + fed, "norm1.out": last,
        },
        norms=2,
    )  # fmt: skip
    assert found.order == "post_norm"
    assert found.after_mixer == Tap("norm0", "in")
    assert found.before_ffn == Tap("norm0", "out")
    assert found.after_ffn == Tap("norm1", "in")
    assert "head_contribution" in found.reasons


@pytest.mark.parametrize("plus_one", [False, True])
@pytest.mark.parametrize("centred", [False, True])
def test_what_a_norm_computes_is_found_from_its_values(
    random: np.random.Generator, plus_one: bool, centred: bool
) -> None:
    module = nn.LayerNorm(WIDTH, eps=1e-5)
    with torch.no_grad():
        module.weight.copy_(torch.tensor(random.normal(size=WIDTH)))
        module.bias.copy_(torch.tensor(random.normal(size=WIDTH)))
    x = random.normal(size=(4, WIDTH)) + 1.0
    y = x - x.mean(-1, keepdims=True) if centred else x
    gain = module.weight.detach().double().numpy() + (1.0 if plus_one else 0.0)
    bias = module.bias.detach().double().numpy()
    out = y / np.sqrt(np.square(y).mean(-1, keepdims=True) + 1e-5) * gain + bias
    found = fit_norm(module, x, out, 1e-6)
    assert found is not None
    assert found.centred == centred
    np.testing.assert_allclose(found.gain, gain)
    np.testing.assert_allclose(found(x), out)
    assert fit_norm(module, x, out * x, 1e-2) is None


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
def test_a_row_that_does_not_tell_whether_its_mean_is_subtracted_is_not_guessed_from(
    random: np.random.Generator, kind: Any
) -> None:
    """One row in bfloat16 with a mean of nearly nothing fits both formulas: the module is asked."""
    module = kind(WIDTH, eps=1e-5).to(torch.bfloat16)
    x = random.normal(size=(1, WIDTH))
    x = torch.tensor(x - x.mean() + 0.01, dtype=torch.bfloat16)
    with torch.no_grad():
        module.weight.copy_(torch.tensor(random.normal(size=WIDTH)))
        out = module(x).double().numpy()
    for swapped in (out, out * (1.0 + 0.002 * random.normal(size=WIDTH))):
        found = fit_norm(module, x.double().numpy(), swapped, 3e-2)
        assert found is not None
        assert found.centred == (kind is nn.LayerNorm)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cap", [None, 30.0])
def test_a_soft_cap_that_hardly_shows_is_seen_and_one_that_is_not_there_is_not(
    dtype: Any, cap: float | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    unembedding, norm = nn.Linear(WIDTH, 50, bias=False).to(dtype), nn.LayerNorm(WIDTH).to(dtype)
    with torch.no_grad():
        unembedding.weight.copy_(torch.randn(50, WIDTH, generator=generator))
        x = torch.randn(2, WIDTH, generator=generator).to(dtype)
        out = norm(x)
        raw = unembedding(out)
        logits = raw if cap is None else torch.tanh(raw / cap) * cap
        found = find_readout(
            norm, unembedding,
            {"into": x.double().numpy(), "out": out.double().numpy(), "end": x.double().numpy()},
            logits, unembedded=raw, constants=(30.0, 50.0, 4.0), tolerance=3e-2,
        )  # fmt: skip
    assert not isinstance(found, str)
    assert (found.scale, found.cap) == (1.0, cap)


def test_widths_that_do_not_follow_from_the_hidden_size_are_found() -> None:
    parts = {
        name: dissect(BY_NAME[name].build()).layers[0] for name in ("gemma2", "deepseek_v3", "qwen3", "gpt2")
    }
    assert {name: (p.heads, p.head_dim) for name, p in parts.items()} == {
        "gemma2": (8, 12),
        "deepseek_v3": (8, 12),
        "qwen3": (8, 16),
        "gpt2": (8, 8),
    }


def test_the_topology_says_what_the_configuration_says() -> None:
    found = dissect(BY_NAME["qwen3_next"].build()).topology
    assert found.layer_kinds == ("linear", "linear", "linear", "full")
    assert found.layer_heads == (0, 0, 0, 8)
    assert (found.experts, found.experts_per_token, found.kv_heads) == (4, 2, 2)
    gemma = dissect(BY_NAME["gemma2"].build()).topology
    assert gemma.layer_kinds == ("sliding", "full", "sliding")
    assert gemma.layer_windows == (6, 0, 6)
    assert dissect(BY_NAME["falcon"].build()).topology.kv_heads == 1


@pytest.mark.parametrize("width", [7, 512, 1100])
def test_a_projection_that_cannot_be_read_is_asked_what_it_does(width: int) -> None:
    """An adapter on top, packed weights: what it does to every unit vector, its offset apart."""

    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base, self.extra = nn.Linear(width, 6), nn.Linear(width, 6, bias=False)
            self.in_features, self.out_features = width, 6

        def forward(self, x: Any) -> Any:
            return self.base(x) + 0.5 * self.extra(x)

    module = Adapted()
    wanted = module.base.weight + 0.5 * module.extra.weight
    torch.testing.assert_close(effective_weight(module), wanted, rtol=1e-5, atol=1e-6)


def test_equal_weights_have_equal_fingerprints_and_others_have_not() -> None:
    first, again = (dissect(BY_NAME["llama"].build()).topology.weights_fingerprint for _ in range(2))
    other = dissect(BY_NAME["llama"].build(seed=1)).topology.weights_fingerprint
    assert first == again != other
