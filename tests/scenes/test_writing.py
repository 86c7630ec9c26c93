"""What is written over the picture: channel, formula, unit and scale of every light; figures."""

from __future__ import annotations

import numpy as np
import pytest
from tests.scenes.streams import SCALE, block, topology

from fulgurite.viewer.colors import Display
from fulgurite.viewer.contribution import Shares
from fulgurite.viewer.hud import (
    STATE_WORDS,
    UNVERIFIED,
    Hud,
    account_line,
    badge,
    bytes_text,
    memory_line,
    model_line,
    quantity,
    speed_line,
)
from fulgurite.viewer.lettering import Canvas, fitted, width_of
from fulgurite.viewer.scene import Captured, ReplicaScene, StripToken
from fulgurite.viewer.writing import (
    LEGEND_LINES,
    bottom_key,
    bottom_lines,
    figure,
    legend,
    note,
    paint_bottom,
    paint_top,
    shares_text,
    short,
    spans,
    strip_rows,
    token_text,
    top_key,
)
from fulgurite.wire.channels import BY_NAME

SHAPE = topology(8, 8)


def _scene(*, experts: int = 0, scaled: bool = True) -> ReplicaScene:
    scene = ReplicaScene(topology(8, 8, experts=experts), title="a model", tokens_shown="text")
    if scaled:
        scene.set_scale(SCALE)
    return scene


# the legend


def test_the_legend_names_channel_formula_and_unit_of_every_node_kind() -> None:
    heads, ffn = legend(_scene())
    assert heads.text == "heads:  head_write = ‖oₕ‖ / ‖r⁺‖  [1], log"
    assert ffn.text == "FFN:  ffn_write = ‖m‖ / ‖r⁺‖  [1], log"
    assert legend(_scene(experts=4))[1].text == "experts:  expert_weights = gate weight  [1]"


@pytest.mark.parametrize("experts", [0, 4])
def test_every_light_in_the_legend_is_a_channel_with_a_formula(experts: int) -> None:
    for entry in legend(_scene(experts=experts)):
        assert BY_NAME[entry.channel].formula
        assert BY_NAME[entry.channel].unit in entry.text


def test_the_legend_shows_the_scale_that_the_lights_are_drawn_with() -> None:
    scene = _scene()
    heads, ffn = legend(scene)
    assert heads.display == scene.display("head") == Display(*SCALE.kinds["head"], is_log=True)
    assert ffn.display == scene.display("ffn") == Display(*SCALE.kinds["ffn"], is_log=True)
    assert [entry.display for entry in legend(_scene(scaled=False))] == [None, None]


def test_the_painted_legend_changes_with_the_scale() -> None:
    scene, bare = _scene(), _scene(scaled=False)
    sheets = [paint_bottom(s, 640, 1.0, tokens=False) for s in (scene, bare)]
    assert (sheets[0] != sheets[1]).any()
    assert bottom_key(scene, False) != bottom_key(bare, False)


def test_the_legend_says_what_is_decoration_and_what_was_not_captured() -> None:
    scene = _scene()
    assert note(scene) == "KV reads not captured  ·  light fades over 0.8 s  ·  a bolt's shape is decoration"
    scene.apply(block(SHAPE, deep=True), 1.0)
    fixed = "light fades over 0.8 s  ·  a bolt's shape is decoration"
    strikes = "strike width: attention weight 0 … 1"
    assert note(scene) == f"KV reads: every token  ·  {strikes}  ·  {fixed}"
    scene.apply(block(SHAPE, position=41), 1.1)
    assert note(scene) == f"KV reads: 1 token in 2  ·  {strikes}  ·  {fixed}"
    scene.advance(10.0)
    assert note(scene) == fixed  # nothing came: nothing is known to be missing


def test_where_layers_take_turns_the_legend_says_how_many_were_looked_at() -> None:
    scene, frames = _scene(), block(SHAPE, deep=True)
    frames.columns["measured_layers"][:, 1:] = 0
    scene.apply(frames, 1.0)
    assert note(scene).startswith("KV reads: every token, 1 of 8 layers")


def test_the_contribution_legend_names_channel_formula_and_unit_and_the_note_what_is_hatched() -> None:
    scene = _scene()
    scene.apply(block(SHAPE, deep=True), 1.0)
    heads, ffn = legend(scene, contribution=True)
    assert heads.text == "heads:  head_contribution = oₕ · g (u_y − ū) / s  [logits]"
    assert ffn.text == "FFN:  ffn_contribution = m · g (u_y − ū) / s  [logits]"
    assert note(scene, contribution=True).startswith("hue: push on the emitted token, logarithmic over 0.1")
    scene.apply(block(SHAPE, position=41), 1.1)
    assert note(scene, contribution=True).startswith("contributions: 1 token in 2, the rest hatched")


def test_where_room_is_short_the_formula_goes_first_and_channel_and_unit_never() -> None:
    entry = legend(_scene(), contribution=True)[0]
    texts = (entry.text, entry.short_text, entry.shortest_text)
    assert [len(text) for text in texts] == sorted((len(text) for text in texts), reverse=True)
    assert all("head_contribution" in text and "[logits]" in text for text in texts)


def test_the_shares_of_the_newest_token_are_written_with_their_residue() -> None:
    parts = (("heads", 3.0), ("FFN", 2.0), ("embedding", -1.0), ("other", 0.0))
    shares = Shares(parts, 4.0, 2e-6, 1e-3, " fox", 41)
    texts, is_warning = shares_text(shares, Captured(1, 1, 8.0))
    assert not is_warning
    assert texts[0] == (
        "“fox”: logit − mean +4.00 = 100 %:  heads +75 %  FFN +50 %  embedding −25 %  other +0 %"
    )
    scene = _scene()
    scene.apply(block(SHAPE, deep=True), 1.0)
    plain = paint_bottom(scene, 1280, 1.0, tokens=False, contribution=True)
    key = bottom_key(scene, False, True)
    assert bottom_key(scene, False, False) != key
    scene.apply(block(SHAPE, position=41, deep=True), 1.1)
    assert bottom_key(scene, False, True) != key
    assert (paint_bottom(scene, 1280, 1.0, tokens=False, contribution=True) != plain).any()


def test_the_bar_is_as_long_as_the_pushes_and_those_against_lie_left_of_zero() -> None:
    shares = Shares((("heads", 3.0), ("FFN", -1.0), ("embedding", 4.0)), 6.0, 0.0, 1e-3, None, 1)
    found = {name: (low, high) for name, low, high, _ in spans(shares)}
    assert found["FFN"] == pytest.approx((0.0, 0.125))
    assert found["heads"] == pytest.approx((0.125, 0.5))
    assert found["embedding"] == pytest.approx((0.5, 1.0))


@pytest.mark.parametrize(
    ("residue", "words"),
    [
        (3e-2, "unverified, its residue 3e-02 σ is over 0.001"),
        (None, "unverified, its residue was not measured"),
    ],
)
def test_shares_that_do_not_add_up_are_unverified(residue: float | None, words: str) -> None:
    shares = Shares((("heads", 3.0),), 4.0, residue, 1e-3, None, 7)
    texts, is_warning = shares_text(shares, Captured(0, 1, 0.0))
    assert is_warning
    assert texts[0] == f"position 7: {words}"
    assert shares_text(None, Captured(0, 1, 0.0)) == (("contributions not captured",), True)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.0123, "0.012"), (0.5, "0.5"), (1.0, "1"), (42.4, "42"), (1e-5, "1e-05"), (4e4, "4e+04")],
)
def test_ends_of_a_scale_have_two_digits(value: float, text: str) -> None:
    assert figure(value) == text


# the figures


def test_what_is_not_known_is_left_out_and_never_zero() -> None:
    hud = Hud()
    assert (speed_line(hud), memory_line(hud, None), account_line(hud)) == ("", "", "")


def test_what_is_known_is_said() -> None:
    hud = Hud(
        tokens_per_s=41.2, running_requests=3, waiting_requests=2, kv_tokens=812, kv_bytes=1_700_000,
        level="heads", overhead_ratio=0.0181, gap_frames=0, latency_s=0.0412,
    )  # fmt: skip
    assert speed_line(hud) == "41 tok/s  ·  3 running  ·  2 waiting"
    assert memory_line(hud, 3.2) == "KV 812 tokens, 1.7 MB  ·  level heads  ·  1 chain = 3 tokens"
    assert account_line(hud) == "agent 1.8 %  ·  no gaps  ·  41 ms to screen"


def test_a_cache_of_known_size_is_a_share() -> None:
    assert memory_line(Hud(kv_bytes=25, kv_capacity_bytes=50), None) == "KV 50 %"


def test_gaps_are_said() -> None:
    assert account_line(Hud(gap_frames=1234)) == "1,234 frames missing"


@pytest.mark.parametrize("state", STATE_WORDS)
def test_a_state_has_a_word(state: str) -> None:
    assert speed_line(Hud(state=state)) == STATE_WORDS[state]


def test_a_model_whose_faithfulness_nobody_measured_is_unverified() -> None:
    assert badge(Hud()) == UNVERIFIED == "unverified on this model"
    assert badge(Hud(faithfulness="passed 4 of 4 gates")) == "faithfulness: passed 4 of 4 gates"


def test_the_model_line_counts_heads_experts_and_parameters() -> None:
    assert model_line(SHAPE) == "8 layers × 8 heads  ·  2 KV heads  ·  4.2 M parameters"
    large = model_line(topology(32, 32, experts=8))
    assert "32 layers × 32 heads = 1,024" in large
    assert "8 experts, 2 active" in large


def test_numbers_for_people() -> None:
    assert [quantity(v) for v in (999, 1000, 4.2e6, 7e9)] == ["999", "1 k", "4.2 M", "7 B"]
    assert [bytes_text(v) for v in (12, 2048, 1.7e6, 8e9)] == ["12 B", "2.05 kB", "1.7 MB", "8 GB"]
    assert short("a-very-long-request-name") == "…est-name"


def test_the_upper_sheet_is_painted_again_when_a_figure_changes() -> None:
    scene = _scene()
    key, sheet = top_key(scene), paint_top(scene, 640, 1.0)
    scene.set_hud(Hud(tokens_per_s=12.0))
    assert top_key(scene) != key
    assert (paint_top(scene, 640, 1.0) != sheet).any()


# the token strip


def _token(text: str | None, token_id: int = -1) -> StripToken:
    return StripToken("r", 0, 7, text, token_id, 0, 0.5, 0.0, True)


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (_token(" fox"), ("fox", True)),
        (_token("\n"), ("↵", True)),
        (_token(" "), ("␣", True)),
        (_token(""), ("∅", True)),
        (_token(None, 42), ("#42", False)),
        (_token(None), ("·7", False)),
    ],
)
def test_a_token_is_its_text_else_its_id_else_its_position(
    token: StripToken, shown: tuple[str, bool]
) -> None:
    assert token_text(token) == shown


def test_the_bar_below_a_token_is_as_long_as_it_was_probable() -> None:
    lengths = []
    for probability in (0.25, 1.0):
        scene = _scene()
        scene.strip.append(StripToken("r", 0, 1, "lantern", 1, 2, probability, 0.0, True))
        sheet = paint_bottom(scene, 640, 1.0, tokens=True)
        below = round(LEGEND_LINES + 26)
        bar = (
            np.abs(sheet[below : below + 3, :, :3].astype(int) - np.array([0, 158, 115])).max(axis=-1) < 3
        ).any(axis=0)
        lengths.append(int(bar.sum()))
    assert lengths[1] > 30
    assert lengths[0] == pytest.approx(lengths[1] / 4, abs=2)


@pytest.mark.parametrize("requests", [1, 3, 4, 6, 20])
@pytest.mark.parametrize(
    ("width", "scale"), [(320, 0.72), (640, 0.72), (640, 1.03), (1280, 1.16), (3840, 3.0)]
)
def test_the_lower_sheet_fits_any_window_and_any_number_of_requests(
    requests: int, width: int, scale: float
) -> None:
    scene = _scene()
    scene.apply(block(SHAPE, requests=tuple(f"request-{i}" for i in range(requests))), 1.0)
    sheet = paint_bottom(scene, width, scale, tokens=True)
    assert sheet.shape == (round(bottom_lines(tokens=True) * scale), width, 4)
    assert sheet.any()


def test_sequences_have_rows_of_their_own_and_those_that_spoke_last_are_shown() -> None:
    scene = _scene()
    for at_s, sequence in enumerate((0, 1, 0, 2, 1, 2, 1)):
        scene.strip.append(StripToken("r", sequence, at_s, f"word{at_s}", 1, 0, 0.5, float(at_s), True))
    assert [[token.text for token in row] for row in strip_rows(scene)] == [
        ["word1", "word4", "word6"],
        ["word3", "word5"],
    ]


# letters


def test_a_text_that_is_too_long_ends_in_an_ellipsis_and_fits() -> None:
    text = "a sentence that is rather long"
    cut = fitted(text, 100.0, 14)
    assert cut.endswith("…")
    assert width_of(cut, 14) <= 100.0
    assert fitted(text, 1000.0, 14) == text
    assert fitted(text, 2.0, 14) == ""


def test_letters_are_premultiplied_and_stay_on_the_sheet() -> None:
    canvas = Canvas(60, 20)
    canvas.text(-10, -5, "over the edge", 16, (200, 100, 50))
    canvas.text(58, 12, "edge", 16, (200, 100, 50), align=1)
    color, cover = canvas.pixels[..., :3].astype(int), canvas.pixels[..., 3:].astype(int)
    assert cover.max() > 200
    assert (color <= cover).all()
