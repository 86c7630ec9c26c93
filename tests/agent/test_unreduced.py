"""What numpy makes of the rows of a step, beside what torch makes of them."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fulgurite.agent import reduce, unreduced  # noqa: E402
from fulgurite.agent.unreduced import Unreduced  # noqa: E402
from fulgurite.wire.channels import TOP_K  # noqa: E402


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("vocabulary", [3, 8, 511, 512, 513, 1031, 32000])
def test_numpy_tells_of_the_distribution_what_torch_tells(vocabulary: int, rows: int) -> None:
    logits = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(vocabulary)) * 4
    logits[:, : vocabulary // 3] = -float("inf")  # tokens that cannot come
    for ids in (logits.argmax(-1, keepdim=True), torch.full((rows, 1), vocabulary - 1)):
        ours = unreduced.uncertainty(logits.numpy(), ids.numpy()[:, 0], full=True)
        theirs = {n: value.numpy() for n, value in reduce.uncertainty(logits, ids, full=True).items()}
        finite = np.isfinite(theirs["top_logprobs"])
        np.testing.assert_array_equal(ours["top_ids"][finite], theirs["top_ids"][finite])
        for name in ("top_logprobs", "logprob", "plogp"):
            value = ours[name].reshape(theirs[name].shape)
            np.testing.assert_allclose(value, theirs[name], rtol=1e-5, atol=1e-5)
        before = (logits > logits.gather(-1, ids)).sum(-1)
        np.testing.assert_array_equal(ours["rank"], before.numpy())


def _drawn_from(logits: torch.Tensor, how: str) -> torch.Tensor:
    """Scores as processors of transformers make them."""
    scores = logits.clone()
    if how == "few are left":
        least = torch.topk(scores, min(5, scores.shape[-1] - 1), -1).values[:, -1:]
        return torch.where(scores >= least, scores / 0.7, -float("inf"))
    if how == "few are changed":
        scores[:, 1::97] -= 2.0
    elif how == "the likely one is kept out":
        scores[torch.arange(len(scores)), logits.argmax(-1)] = -float("inf")
    elif how == "one is raised beyond all numbers":
        scores[:, 2] = 1000.0
    elif how == "one is left":
        scores[:, :-1] = -float("inf")
    elif how == "as they are":
        return scores
    else:
        scores /= 0.7
    return scores


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("vocabulary", [3, 1031, 32000])
@pytest.mark.parametrize(
    "how",
    [
        "as they are", "few are changed", "few are left", "all are changed", "the likely one is kept out",
        "one is raised beyond all numbers", "one is left",
    ],
)  # fmt: skip
def test_what_was_sampled_from_is_told_however_few_of_it_are_looked_at(
    how: str, vocabulary: int, rows: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    logits = (torch.randn(rows, vocabulary, generator=generator) * 6).to(dtype)
    if vocabulary == 1031:
        logits[:, 5] = 120.0 if dtype != torch.float16 else 60.0  # the others lose their digits
    scores = _drawn_from(logits, how)
    ids = scores.argmax(-1)
    held = Unreduced(logits, ids.numpy().astype(np.int32), full=True, nbytes=0, scores=scores)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = held.reduced(None)
    wanted = torch.log_softmax(scores.double(), -1)[torch.arange(rows), ids]
    np.testing.assert_allclose(found["logprob_sampled"], wanted.numpy(), rtol=1e-5, atol=2e-5)
    alone = [
        Unreduced(logits[i : i + 1], ids.numpy()[i : i + 1], full=True, nbytes=0).reduced(None)
        for i in range(rows)
    ]
    for name in ("logprob", "plogp", "top_ids", "top_logprobs", "rank"):
        one_by_one = np.concatenate([one[name] for one in alone])
        np.testing.assert_allclose(found[name], one_by_one, rtol=1e-5, atol=1e-5)


def _top_ids(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return unreduced._top_ids(logits, unreduced._maxima(logits))


def test_the_most_probable_are_told_also_of_odd_distributions() -> None:
    width = 1031
    equal, nan = np.zeros((1, width), np.float32), np.full((1, width), np.nan, np.float32)
    pairs = np.repeat(np.arange(width // 2 + 1, dtype=np.float32), 2)[None, :width]
    sparse = np.full((1, width), -np.inf, np.float32)
    sparse[0, [7, 1030, 500]] = 3.0, 2.0, 1.0
    for logits in (equal, nan, pairs, sparse):
        ids = _top_ids(logits)
        assert ids.shape == (1, TOP_K)
        assert len(set(ids[0].tolist())) == TOP_K
    assert _top_ids(sparse)[0, :3].tolist() == [7, 1030, 500]
    assert _top_ids(pairs)[0].tolist() == [1030, 1028, 1029, 1026, 1027, 1024, 1025, 1022]


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize(("heads", "width"), [(4, 8), (3, 64), (5, 80), (2, 128)])
def test_numpy_tells_of_the_heads_what_torch_tells(heads: int, width: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(width)
    weight = torch.randn(2, heads, width, 3 * width, generator=generator)
    inputs, grams = torch.randn(2, rows, heads * width, generator=generator), weight @ weight.mT
    ours = unreduced.head_squares(inputs.numpy(), grams.numpy())
    np.testing.assert_allclose(ours, reduce.squares(inputs, grams).numpy(), rtol=2e-5)


def _held(seed: int, dtype: torch.dtype, *, apart: bool) -> tuple[Unreduced, Unreduced]:
    """A step, and the same with all of it copied beforehand to float32."""
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(9, 33_000, generator=generator) * 4).to(dtype)
    stream = torch.randn(7, 9, 96, generator=generator).to(dtype)
    inputs = torch.randn(4, 9, 128, generator=generator).to(dtype)
    grams = (torch.randn(4, 2, 64, 64, generator=generator).numpy(),)
    ids = logits.argmax(-1).numpy().astype(np.int32)
    parts = tuple(list(part) if apart else reduce.numbers(part) for part in (stream, inputs))
    plain = tuple(part.float().numpy() for part in (stream, inputs))
    held = Unreduced(logits, ids, full=True, nbytes=0, kept=parts, grams=grams)
    return held, Unreduced(logits.float(), ids, full=True, nbytes=0, kept=plain, grams=grams)


class _Layout:
    """What `Unreduced` reads of a plan."""

    places = tuple(range(7))
    is_joint = False
    is_centred = True
    met = np.arange(2)
    met_slots = slice(1, 3), np.array([5, 3])


@pytest.mark.parametrize("at_once", [1, 700, 1 << 18])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_all_is_told_alike_in_whatever_portions(
    dtype: torch.dtype, apart: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout: Any = _Layout
    held, whole = _held(0, dtype, apart=apart)
    wanted = whole.reduced(layout)
    monkeypatch.setattr(unreduced, "_AT_ONCE", at_once)
    found = held.reduced(layout)
    assert found.keys() == wanted.keys() >= {"norms", "products", "means", "heads0", "plogp"}
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5, err_msg=name)


def test_threads_that_reduce_at_the_same_time_do_not_share_what_they_work_in() -> None:
    layout: Any = _Layout
    seeds = range(8)
    wanted = [_held(seed, torch.bfloat16, apart=True)[0].reduced(layout) for seed in seeds]

    def again(seed: int) -> list[dict[str, np.ndarray[Any, Any]]]:
        return [_held(seed, torch.bfloat16, apart=True)[0].reduced(layout) for _ in range(5)]

    with ThreadPoolExecutor(len(seeds)) as pool:
        for seed, found in zip(seeds, pool.map(again, seeds), strict=True):
            for one in found:
                for name, values in wanted[seed].items():
                    np.testing.assert_array_equal(one[name], values, err_msg=name)
