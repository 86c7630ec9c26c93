"""What a step costs the host's thread, told by structure and not by a clock: calls of torch, and copies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.agent.unread import Unread  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from fulgurite.agent import InMemoryExporter, instrument, measure, reduce  # noqa: E402
from fulgurite.agent.engines.transformers import Engine  # noqa: E402
from fulgurite.agent.late import LateBlock  # noqa: E402
from fulgurite.agent.renewed import Renewed  # noqa: E402
from fulgurite.wire.frame import FrameBlock  # noqa: E402

TOKENS = 6
_WAYS_IN = ("opens", "closes", "committed")  # all that runs on the host's thread, besides the probes


class _Calls(TorchDispatchMode):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def _llama(layers: int) -> Any:
    torch.manual_seed(layers)
    settings = transformers.LlamaConfig(
        vocab_size=1031,  # no multiple of anything
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        eos_token_id=None,
    )
    return transformers.LlamaForCausalLM(settings).eval()


def _generate(model: Any, rows: int, **options: Any) -> None:
    ids = torch.arange(5, 5 + 4 * rows).view(rows, 4)
    model.generate(ids, max_new_tokens=TOKENS, do_sample=False, pad_token_id=0, **options)


def _counted(call: Callable[..., Any], counts: Counter[str]) -> Callable[..., Any]:
    def counting(*args: Any, **kwargs: Any) -> Any:
        with _Calls(counts):
            return call(*args, **kwargs)

    return counting


def _calls(
    monkeypatch: pytest.MonkeyPatch, *, layers: int, level: str, rows: int, **options: Any
) -> Counter[str]:
    """Calls of torch within our ways in, over `TOKENS` steps of a model that is known already."""
    model, counts, exporter = _llama(layers), Counter[str](), Unread()
    with instrument(model, level=level, exporter=exporter, budget=None), monkeypatch.context() as patch:
        _generate(model, rows)
        exporter.given.clear()
        for name in _WAYS_IN:
            patch.setattr(Engine, name, _counted(getattr(Engine, name), counts))
        _generate(model, rows, **options)
    return counts


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("level", ["pulse", "heads"])
def test_calls_per_step_do_not_grow_with_the_layers(
    monkeypatch: pytest.MonkeyPatch, level: str, rows: int
) -> None:
    few, many = (_calls(monkeypatch, layers=n, level=level, rows=rows) for n in (2, 7))
    assert few == many
    assert 0 < sum(few.values()) / TOKENS <= 4


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.3}], ids=["plain", "processed"])
@pytest.mark.parametrize("level", ["pulse", "heads"])
def test_the_hosts_thread_copies_rows_and_computes_nothing_of_them(
    monkeypatch: pytest.MonkeyPatch, level: str, options: dict[str, Any]
) -> None:
    called = {name.split(".")[1] for name in _calls(monkeypatch, layers=3, level=level, rows=2, **options)}
    assert called <= {
        "select", "slice", "view", "_unsafe_view", "reshape", "flatten", "stack", "clone", "_to_copy",
        "copy_", "detach", "alias", "unsqueeze", "zeros", "empty_like",
    }  # fmt: skip


@pytest.mark.parametrize("held", [True, False], ids=["held", "copied together"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("level", ["pulse", "heads", "deep"])
def test_what_is_reduced_later_is_what_the_hosts_thread_would_have_reduced(
    monkeypatch: pytest.MonkeyPatch, level: str, dtype: torch.dtype, held: bool
) -> None:
    if not held:
        monkeypatch.setattr(Renewed, "is_trusted", lambda *_: False)
    model, columns = _llama(3).to(dtype), []
    for most in (measure.MOST_BYTES, 0):
        monkeypatch.setattr(measure, "MOST_BYTES", most)
        exporter = InMemoryExporter()
        with instrument(
            model, level=level, exporter=exporter, budget=None, deep_ratio=1.0 if level == "deep" else None
        ):
            _generate(model, 2)
        columns.append([block.columns for block in exporter.blocks])
    later, at_once = columns
    assert len(later) == len(at_once) == TOKENS
    for ours, theirs in zip(later, at_once, strict=True):
        assert set(ours) == set(theirs)
        ties = set() if dtype == torch.float32 else {"top_ids", "lens_prob", "lens_rank", "neuron_ids"}
        for name in set(ours) - {"started_ns", "ended_ns", "step"} - ties:  # equals come in any order
            assert ours[name].dtype == theirs[name].dtype, name
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("reuses", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_model_that_writes_every_pass_into_the_same_memory_is_measured_rightly(
    monkeypatch: pytest.MonkeyPatch, rows: int, reuses: bool
) -> None:
    model, found = _llama(2), []
    trusted: list[bool] = []
    is_trusted = Renewed.is_trusted

    def noted(*args: Any) -> bool:
        trusted.append(is_trusted(*args))
        return trusted[-1]

    monkeypatch.setattr(Renewed, "is_trusted", noted)
    if reuses:
        for layer in model.model.layers:
            layer.self_attn.o_proj.register_forward_pre_hook(_Reusing())
    for most in (measure.MOST_BYTES, 0):
        monkeypatch.setattr(measure, "MOST_BYTES", most)
        exporter = Unread()
        with instrument(model, level="heads", exporter=exporter, budget=None):
            _generate(model, rows)
            found.append([block.columns["head_write"] for block in exporter.given])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    learning = 2  # passes of one position
    assert trusted == [False] * learning + [not reuses] * (TOKENS - 1 - learning)


def test_what_is_our_own_copy_teaches_nothing_of_the_models_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for most in (measure.MOST_BYTES, 0):
        monkeypatch.setattr(measure, "MOST_BYTES", most)
        model, exporter = _llama(2), Unread()
        for layer in model.model.layers:
            layer.self_attn.o_proj.register_forward_pre_hook(_Reusing())
        with instrument(model, level="heads", exporter=exporter, budget=None):
            _generate(model, 1, num_beams=2)  # whose rows are picked, which copies them
            for block in exporter.given:
                assert block.columns
            exporter.given.clear()
            _generate(model, 1)
            found.append([block.columns["head_write"] for block in exporter.given])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


def test_what_is_left_of_a_model_in_training_is_told() -> None:
    torch.manual_seed(0)
    settings = transformers.MixtralConfig(
        vocab_size=101, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, max_position_embeddings=64,
    )  # fmt: skip
    told = []
    for grad in (False, True):
        torch.manual_seed(0)
        model, exporter = transformers.MixtralForCausalLM(settings), InMemoryExporter()
        with instrument(model, level="heads", exporter=exporter, budget=None), torch.set_grad_enabled(grad):
            cache, fed = transformers.DynamicCache(config=model.config), torch.arange(5, 9)[None]
            for _ in range(4):
                logits = model(fed, past_key_values=cache, use_cache=True).logits
                assert logits.requires_grad == grad
                fed = logits[:, -1].argmax(-1, keepdim=True)
        told.append([block.columns for block in exporter.blocks])
    for plain, trained in zip(*told, strict=True):
        for name in ("logprob", "head_write", "ffn_write", "expert_ids", "expert_weights"):
            np.testing.assert_allclose(trained[name], plain[name], rtol=1e-5, err_msg=name)


class _ReusingScores:
    """A processor of somebody else's that writes every step's scores into the same memory."""

    def __init__(self) -> None:
        self.memory: torch.Tensor | None = None

    def __call__(self, _: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.memory is None:
            self.memory = torch.empty_like(scores)
        return self.memory.copy_(scores).mul_(0.5)


@pytest.mark.parametrize("whose", ["transformers'", "somebody else's", "handed out"])
def test_scores_that_others_write_into_are_told_as_they_were(
    monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    model, found, clones = _llama(2), [], []
    clone = torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "clone", lambda one, **to: clones.append(one.shape) or clone(one, **to))
    for most in (measure.MOST_BYTES, 0):
        monkeypatch.setattr(measure, "MOST_BYTES", most)
        options: dict[str, Any] = {"repetition_penalty": 1.3}
        if whose == "somebody else's":
            options = {"logits_processor": transformers.LogitsProcessorList([_ReusingScores()])}
        elif whose == "handed out":
            options |= {"output_scores": True, "return_dict_in_generate": True}
        exporter = Unread()
        with instrument(model, level="pulse", exporter=exporter, budget=None):
            ids = torch.arange(5, 13).view(2, 4)
            given = {"max_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0}
            made = model.generate(ids, **given, **options)
            for scores in made.scores if whose == "handed out" else ():
                scores.zero_()
            found.append([block.columns["logprob_sampled"] for block in exporter.given])
    assert len(found[0]) == TOKENS
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    assert ((2, 1031) in clones) == (whose != "transformers'")


class _Reusing:
    """Hands what a module is given on in memory of its own, which is the same in every pass."""

    def __init__(self) -> None:
        self.memory: dict[torch.Size, torch.Tensor] = {}

    def __call__(self, _: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        given = args[0]
        return (self.memory.setdefault(given.shape, torch.empty_like(given)).copy_(given),)


@pytest.mark.parametrize("rows", [1, 2])
def test_what_the_host_writes_into_its_logits_later_is_not_told(rows: int) -> None:
    model, told = _llama(2), []
    ids = torch.arange(5, 5 + 4 * rows).view(rows, 4)
    for writes in (False, True):
        exporter = Unread()
        with (
            instrument(model, level="heads", exporter=exporter, budget=None),
            torch.inference_mode(),
        ):
            cache, fed = transformers.DynamicCache(config=model.config), ids
            for _ in range(3):
                logits = model(fed, past_key_values=cache, use_cache=True).logits
                fed = logits[:, -1].argmax(-1, keepdim=True)
                if writes:
                    logits.zero_()
        told.append(np.concatenate([block.columns["logprob"] for block in exporter.given]))
    assert len(told[0]) == 2 * rows  # the last step's token was never fed
    np.testing.assert_array_equal(told[1], told[0])


def test_where_nobody_reads_few_steps_wait_to_be_reduced() -> None:
    exporter, model = Unread(), _llama(2)
    with instrument(model, level="heads", exporter=exporter, budget=None):
        for _ in range(4):
            _generate(model, 1)
        waiting = [block for block in exporter.given if block._make.__self__.unreduced is not None]
        assert len(exporter.given) == 4 * TOKENS
        assert len(waiting) == measure.MOST_LEFT
        assert {len(block.columns["head_write"]) for block in exporter.given} == {1}


def test_an_ordinary_step_at_deep_holds_and_tells_what_one_at_heads_does() -> None:
    """Else it weighs more than may wait, where one at `heads` does not."""
    told = []
    for level in ("heads", "deep"):
        exporter, model = Unread(), _llama(3)
        with instrument(model, level=level, exporter=exporter, budget=None, deep_ratio=1e-6):
            _generate(model, 2)
        blocks = exporter.given[-3:]  # until then it is found out whether what is held stays as it is
        told.append(([block.nbytes for block in blocks], [dict(block.columns) for block in blocks]))
    (held, columns), (held_deep, columns_deep) = told
    assert held == held_deep
    for ours, theirs in zip(columns_deep, columns, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - {"started_ns", "ended_ns"}:
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_of_steps_that_outweigh_what_may_wait_together_one_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a large batch would push one another out of the outbox."""
    monkeypatch.setattr(measure, "MOST_LEFT_BYTES", 1)
    exporter, model = Unread(), _llama(2)
    with instrument(model, level="heads", exporter=exporter, budget=None):
        _generate(model, 1)
        waiting = [block for block in exporter.given if block._make.__self__.unreduced is not None]
        assert len(exporter.given) == TOKENS > 1
        assert len(waiting) == 1
        assert {len(block.columns["head_write"]) for block in exporter.given} == {1}


@pytest.mark.parametrize("level", ["pulse", "heads"])
def test_a_step_that_weighs_more_than_all_that_may_wait_is_measured(
    monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    monkeypatch.setattr(measure, "MOST_BYTES", 4096)
    monkeypatch.setattr(measure, "MOST_LEFT_BYTES", 4 * 1031)  # one row of logits: less than three
    exporter = InMemoryExporter()
    model = _llama(2)
    with instrument(model, level=level, exporter=exporter, budget=None) as agent:
        _generate(model, 3)
        assert agent.stats().errors == {}
    assert len(exporter.frames) == 3 * TOKENS


@pytest.mark.parametrize("level", ["pulse", "heads"])
def test_all_results_of_a_step_go_to_the_host_together(monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    model, rows, asked = _llama(3), 3, []
    monkeypatch.setattr(measure, "MOST_BYTES", 0)  # nothing is left for later
    to_host = reduce.to_host
    monkeypatch.setattr(reduce, "to_host", lambda found: asked.append(set(found)) or to_host(found))
    with instrument(model, level=level, exporter=InMemoryExporter(), budget=None):
        _generate(model, rows)
    assert len(asked) == TOKENS
    assert all({"tokens", "logprob"} <= found for found in asked)
    assert all(({"norms", "heads0"} <= found) == (level == "heads") for found in asked)


def test_a_step_on_a_device_is_copied_to_the_host_once() -> None:
    like = torch.zeros(2, 9, device="meta")  # where no value can be had, only calls can be seen
    found = {"tokens": like[:, :1].long(), **reduce.uncertainty(like, like[:, :1].long(), full=True)}
    packed = reduce.packed(found)
    assert packed.shape == (sum(value.numel() for value in found.values()),)
    assert packed.dtype == torch.float32


def test_what_is_packed_for_the_copy_comes_out_as_it_went_in() -> None:
    found = {"a": torch.arange(6).view(2, 3), "b": torch.tensor([0.5, -1.0]), "c": torch.ones(1, 1, 2)}
    unpacked = reduce.unpacked(reduce.packed(found).numpy(), found)
    assert set(unpacked) == set(found)
    for name, value in found.items():
        np.testing.assert_array_equal(unpacked[name], value.numpy())


@pytest.mark.parametrize("vocabulary", [3, 8, 511, 512, 513, 1031, 32000])
def test_a_single_row_tells_what_several_rows_tell(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(1, vocabulary, generator=generator) * 4
    logits[0, : vocabulary // 3] = -float("inf")  # tokens that cannot come
    for token in (int(logits.argmax()), vocabulary - 1):
        ids = torch.tensor([[token]])
        row = reduce.row_uncertainty(logits, ids, full=True)
        rows = {name: value.numpy() for name, value in reduce.uncertainty(logits, ids, full=True).items()}
        finite = np.isfinite(rows["top_logprobs"])
        np.testing.assert_array_equal(reduce.top_ids(row)[finite], reduce.top_ids(rows)[finite])
        np.testing.assert_array_equal(row["top_logprobs"], rows["top_logprobs"][0])
        np.testing.assert_array_equal(row["logprob"], rows["logprob"][0])
        np.testing.assert_allclose(row["plogp"], rows["plogp"], rtol=1e-5, atol=1e-6)
        assert row.get("rank") == rows.get("rank")


def test_columns_are_made_where_they_are_read_and_once() -> None:
    made: list[int] = []

    def make() -> dict[str, np.ndarray[Any, Any]]:
        made.append(1)
        return {"position": np.arange(2, dtype=np.int32)}

    block = LateBlock((), make, rows=2, nbytes=8)
    assert (len(block), block.nbytes, made) == (2, 8, [])
    assert block.columns is block.columns
    assert made == [1]
    assert isinstance(block, FrameBlock)
    assert len(block.select([0])) == 1
