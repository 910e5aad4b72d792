"""The overview: what its panels show, that nothing leaves its place, and that it stays cheap."""

import math

import numpy as np
import pytest
import torch

from made_reports import basin, layer, report
from netdyn._utils import drawing
from netdyn.report.figures import overview as drawn
from netdyn.report.history import History
from netdyn.report.verdict import LEVELS, Verdict

TITLES = [
    "accuracy",
    "noise withstood, σ",
    "units in order (OPT)",
    "order of the samples\n(RPD gradient)",
    "dead units",
    "accuracy without\nactivations",
]


def history(layers=3, evaluations=4, **changes):
    """A run in which everything grows evenly."""
    made = History()
    for i in range(evaluations):
        share = (i + 1) / evaluations
        own = [layer(f"net.{k}", opt=share * (k + 1) / layers, gradient=share * k, dead=0.1 * k) for k in range(layers)]
        basins = {"sample": basin(share, (0.5 * share, 2 * share)), "weight": basin(share / 2, (0.1 * share, share))}
        made.add(10 * i, report(*own, accuracy=share, val_accuracy=share / 2, **basins | changes))
    return made


def overview(made, level="healthy", advice="", reason="training accuracy 0.980, validation 0.962"):
    return drawn.overview(made, Verdict(level, {}, advice, reason))


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def words(axes):
    return [text.get_text() for text in axes.texts]


def test_six_panels_show_the_numbers_over_the_run():
    made = history()
    figure = overview(made)
    assert titles(figure) == TITLES
    lines = {axes.get_title(loc="left"): [line.get_ydata() for line in axes.lines] for axes in figure.axes}
    assert [list(line) for line in lines["accuracy"]] == [
        made.curve("probe/accuracy"),
        made.curve("probe/val_accuracy"),
    ]
    radii = [made.curve(f"basin/{space}/radius") for space in ("sample", "weight")]
    assert [list(line) for line in lines[TITLES[1]]] == radii
    for title, kind in zip(TITLES[2:], ("opt_fraction", "rpd_gradient", "dead_fraction"), strict=False):
        np.testing.assert_allclose(lines[title], made.curves(f"modes/{kind}"), atol=1e-7)
    np.testing.assert_allclose(lines[TITLES[5]], made.curves("linear/tail_accuracy"))


def test_a_basin_has_its_interval_as_a_band():
    made = history()
    bands = overview(made).axes[1].collections
    for band, space in zip(bands, ("sample", "weight"), strict=True):
        heights = band.get_paths()[0].vertices[:, 1]
        ends = {value for end in ("low", "high") for value in made.curve(f"basin/{space}/{end}")}
        assert ends <= set(heights)


def test_the_last_numbers_stand_below_the_panels():
    panels = overview(history()).axes
    assert words(panels[0]) == ["train 1", "val 0.5"]
    assert words(panels[1]) == ["input 1", "weight 0.5"]
    assert words(panels[2]) == ["layer 1: 0.33", "3: 1"]
    assert words(panels[4]) == ["layer 1: 0", "3: 0.2"]


@pytest.mark.parametrize(("layers", "images"), [(1, 0), (8, 0), (9, 4), (50, 4)])
def test_many_layers_are_a_heat_map(layers, images):
    figure = overview(history(layers))
    assert sum(len(axes.images) for axes in figure.axes) == images
    if images:
        made = history(layers).curves("modes/opt_fraction").numpy()
        image = figure.axes[2].images[0].get_array()
        np.testing.assert_allclose(image[:, [0, -1]], made[:, [0, -1]], atol=1e-7)
        # The whole scale is used.
        assert figure.axes[2].images[0].get_clim() == (0.0, pytest.approx(made.max()))
        assert words(figure.axes[2]) == ["0 dark", f"{made.max():g} bright"]


def test_what_was_not_measured_is_said():
    made = History()
    made.add(0, report(accuracy=0.5))
    figure = overview(made)
    assert words(figure.axes[0]) == ["train 0.5"]
    assert [words(axes) for axes in figure.axes[1:]] == [["not measured"]] * 5


@pytest.mark.parametrize("level", LEVELS)
def test_the_title_has_the_verdict_on_its_colour(level):
    figure = overview(history(), level, advice="train longer")
    (strip,) = figure.patches[-1:] if figure.artists == [] else figure.artists
    calm = level in ("healthy", "learning", "untrained", "no finding")
    assert (drawn.COLOURS.get(level, drawn.ALARM) != drawn.ALARM) == calm
    assert strip.get_facecolor() == pytest.approx(drawn_colour(level))
    shown = [text.get_text() for text in figure.texts]
    assert shown[:2] == [level, "step 30"]
    assert shown[2].replace("\n", " ") == "training accuracy 0.980, validation 0.962. Try: train longer."


def drawn_colour(level):
    from matplotlib.colors import to_rgba

    return to_rgba(drawn.COLOURS.get(level, drawn.ALARM))


def test_a_long_reason_keeps_to_two_lines():
    figure = overview(history(), reason="a long reason " * 20)
    lines = figure.texts[2].get_text().splitlines()
    assert len(lines) == 2
    assert all(len(line) <= drawn.LETTERS for line in lines)
    assert lines[1].endswith("…")


def boxes(figure):
    return dict(figure_boxes(figure))


def figure_boxes(figure):
    """The places of everything that is written, in dots."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    written = list(figure.texts)
    for axes in figure.axes:
        written += [*axes.texts, axes._left_title, *axes.get_xticklabels(), *axes.get_yticklabels()]
    return [(text.get_text(), text.get_window_extent(renderer)) for text in written if text.get_text()]


def falling():
    """Gradients of either sign, and validation accuracy that falls in the end."""
    made = History()
    for step, val in enumerate([0.1, 0.55, 0.87, 0.6]):
        own = [layer("a", gradient=-0.31), layer("b", gradient=0.28)]
        made.add(10 * step, report(*own, accuracy=0.9, val_accuracy=val))
    return made


@pytest.mark.parametrize("made", [history(), history(8, 40), history(50, 3), history(1, 1), falling()])
def test_nothing_reaches_beyond_the_picture(made):
    for text, box in boxes(overview(made, "distribution shift", advice="words " * 30)).items():
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= drawn.WIDTH, text
        assert box.y1 <= drawn.HEIGHT, text


def test_nothing_is_written_over_the_panel_beside_or_above():
    """No two things written on the picture overlap, but for numbers beside a panel and the line below it."""
    placed = [box for figure in [overview(falling(), advice="words " * 30)] for box in figure_boxes(figure)]
    for i, (one, box) in enumerate(placed):
        for other, its in placed[:i]:
            across = min(box.x1, its.x1) - max(box.x0, its.x0)
            down = min(box.y1, its.y1) - max(box.y0, its.y0)
            assert min(across, down) <= 2, (one, other)


def test_the_best_step_is_marked_once_validation_accuracy_has_fallen():
    (*_, mark) = overview(falling()).axes[0].lines
    assert list(mark.get_xdata()) == [20, 20]
    assert len(overview(history()).axes[0].lines) == 2
    flat = History()
    for step, val in enumerate([0.5, 0.8, 0.79]):
        flat.add(step, report(accuracy=0.9, val_accuracy=val))
    assert len(overview(flat).axes[0].lines) == 2


def test_training_and_validation_share_no_colour_with_the_basins():
    first, second = ({line.get_color() for line in axes.lines} for axes in overview(history()).axes[:2])
    assert not first & second


def test_a_drawn_out_axis_is_named():
    made = History()
    for step in (0, 1, 2, 5, 100, 1000):
        made.add(step, report(accuracy=0.5))
    assert overview(made).texts[1].get_text() == "step 1,000, log-like axis"


def test_letters_are_twice_as_high_as_what_can_be_read_on_a_card():
    from matplotlib.font_manager import FontProperties

    figure = overview(history())
    written = [*figure.texts, *(text for axes in figure.axes for text in (*axes.texts, *axes.get_xticklabels()))]
    sizes = [FontProperties(size=text.get_size()).get_size_in_points() * drawn.DPI / 72 for text in written]
    assert min(sizes) >= 2 * 7.5
    assert {text.get_weight() for text in written} == {"bold"}


def test_the_picture_fits_twice_into_tensorboards_card():
    image = drawing.pixels(overview(history()))
    assert tuple(image.shape) == (430, 652, 3)


@pytest.mark.parametrize("steps", [[0, 1, 2, 5, 10, 100, 1000], [0, 0, 1, 2, 3], [5], [3, 4]])
def test_steps_increase_along_the_axis(steps):
    made = History()
    for step in steps:
        made.add(step, report(accuracy=0.5))
    x = drawn.spread(made.places())
    assert len(x) == len(steps)
    assert (np.diff(x) > 0).all()
    assert np.isfinite(x).all()
    assert drawing.pixels(overview(made)).shape[0] == 430


def test_very_uneven_steps_are_spread():
    x = drawn.spread([0.0, 1, 2, 5, 10, 100, 1000])
    assert x[3] > 0.2 * x[-1]
    assert drawn.spread([0.0, 10, 20]).tolist() == [0, 10, 20]


def test_an_infinite_radius_is_drawn_at_the_highest_noise():
    made = history(sample=basin(math.inf, (math.inf, math.inf)))
    assert overview(made).axes[1].lines[0].get_ydata().tolist() == [10.0] * 4


def test_a_layer_without_numbers_is_left_out_and_a_gap_stays_a_gap():
    made = History()
    for step, opt in enumerate([0.25, math.nan, 0.5]):
        made.add(step, report(layer("a", opt=math.nan), layer("b", opt=opt)))
    (line,) = overview(made).axes[2].lines
    np.testing.assert_allclose(line.get_ydata(), [0.25, math.nan, 0.5])


def test_it_has_few_artists_whatever_the_length_of_the_run():
    """Drawing time follows the number of artists; ticks and letters are the dear ones."""
    few, many = (len(overview(history(3, n)).findobj()) for n in (4, 60))
    assert few == many < 700
    assert len(overview(history(60, 60)).findobj()) <= many


def test_the_same_numbers_give_the_same_picture():
    assert torch.equal(drawing.pixels(overview(history())), drawing.pixels(overview(history())))
