"""What all figures have in common: the same image everywhere, nothing global touched, names that fit."""

import importlib.util
import itertools
import re
import subprocess
import sys

import matplotlib as mpl
import pytest
import torch
from matplotlib.figure import Figure

from drawings import ALL, basin, curve, densities, gaussian
from netdyn._utils import drawing
from netdyn.report.figures import canvas
from netdyn.report.figures.curves import basin_curves, rank_distributions, tail
from netdyn.report.figures.maps import characteristic_maps, heat_map, subnetwork

every_figure = pytest.mark.parametrize("make", ALL.values(), ids=ALL)
every_function = pytest.mark.parametrize(
    "name", ["rank distributions", "tail", "basin", "maps, colour", "heat, uneven"]
)


# What all have in common ----------------------------------------------------------------------------------------------


@every_figure
def test_a_figure_becomes_an_image_that_is_not_empty(make):
    figure = make()
    assert isinstance(figure, Figure)
    image = drawing.pixels(figure)
    assert (image.dtype, image.ndim, image.shape[2]) == (torch.uint8, 3, 3)
    assert image.shape[:2] == (round(figure.get_figheight() * 120), round(4.8 * 120))
    assert len(image.reshape(-1, 3).unique(dim=0)) > 2


@every_function
def test_the_same_numbers_give_the_same_image_whatever_the_users_style(name):
    expected = drawing.pixels(ALL[name]())
    assert torch.equal(drawing.pixels(ALL[name]()), expected)
    odd = {"font.size": 30.0, "axes.facecolor": "red", "lines.linewidth": 9.0, "text.usetex": True}
    with mpl.rc_context(odd):
        assert torch.equal(drawing.pixels(ALL[name]()), expected)
        assert {key: mpl.rcParams[key] for key in odd} == odd


@every_figure
def test_a_figure_has_a_title_and_names_its_axes(make):
    figure = make()
    assert len(figure.get_suptitle()) > 10
    axes = figure.axes[0]
    assert (axes.get_xlabel() and axes.get_ylabel()) or "weighs the inputs" in figure.get_suptitle()


@every_function
def test_nothing_is_left_with_pyplot(name):
    from matplotlib import pyplot as plt

    drawing.pixels(ALL[name]())
    assert plt.get_fignums() == []


def test_pyplot_is_not_loaded():
    code = (
        "import sys, torch\nfrom netdyn._utils import drawing\nfrom netdyn.report.figures import maps\n"
        "assert 'matplotlib' not in sys.modules\n"
        "drawing.pixels(maps.heat_map(torch.rand(2, 3), ['a', 'b'], [0, 5, 10], 'share'))\n"
        "assert 'matplotlib' in sys.modules\nprint('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_style_is_put_back_when_drawing_fails():
    with mpl.rc_context({"font.size": 30.0}):
        with pytest.raises(ValueError, match="steps"):
            heat_map(torch.zeros(1, 2), ["a"], [1, 1], "x")
        assert mpl.rcParams["font.size"] == 30.0


def test_without_matplotlib_the_error_names_what_to_install(monkeypatch):
    monkeypatch.setattr(drawing, "available", lambda: False)
    text = (
        "Figures need matplotlib, which is not installed. In a clone of netdyn, install it with: pip install '.[plot]'."
    )
    with pytest.raises(ImportError, match=f"^{re.escape(text)}$"):
        tail({"a": 0.5}, 0.5, 0)


def test_matplotlib_is_looked_for_without_loading_it(monkeypatch):
    assert drawing.available()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not drawing.available()


@pytest.mark.parametrize("name", ["a$b$c", "a_b^c", "\\alpha", "%", "_hidden", "Ω—层"])
def test_names_are_not_read_as_formulas(name):
    figure = rank_distributions({name: torch.ones(5)})
    assert drawing.pixels(figure).float().std() > 0


# Names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["net.0", "net.1"], ["net.0", "net.1"]),
        (["hidden.0.1", "hidden.1.1"], ["hidden.0.1", "hidden.1.1"]),
        ([], []),
    ],
)
def test_labels_are_whole_names(names, labels):
    assert canvas.layer_labels(names) == labels


def test_a_dollar_in_a_name_begins_no_formula():
    assert canvas.layer_labels(["a$b$"]) == [r"a\$b\$"]


def test_long_labels_lose_their_middle_and_stay_different():
    names = [f"encoder.layers.{i}.attention.self.query" for i in range(12)]
    labels = canvas.layer_labels(names, 20)
    assert len(set(labels)) == 12
    assert all(label.startswith("encoder.") and label.endswith("query") and "…" in label for label in labels)


@pytest.mark.parametrize("length", [5, 12, 20])
def test_long_names_are_cut_to_length(length):
    name = "abcdefghijklmnopqrstuvwxyz"
    cut = canvas.short(name, length)
    assert len(cut) <= length
    assert cut[0] == "a"
    assert cut[-1] == "z"
    assert canvas.short(name[:length], length) == name[:length]


@pytest.mark.parametrize("number", [0, 1, 2, 11, 12, 13, 100, 1000])
def test_ticks_are_few_and_reach_both_ends(number):
    ticks = canvas.thinned(number)
    assert len(ticks) == min(number, 12)
    assert ticks == sorted(set(ticks))
    assert not number or (ticks[0], ticks[-1]) == (0, number - 1)


LONG = [f"model.encoder.layers.{i}.self_attention.linear" for i in range(9)]


def tied(names):
    made = dict(zip(names, densities(len(names)).values(), strict=True))
    return rank_distributions(
        {name: d.index_fill(0, torch.tensor(5), 9.0) for name, d in made.items()}, dict.fromkeys(names, 1.0)
    )


ODD = {
    "rank distributions, long names": lambda: rank_distributions(dict(zip(LONG, densities(9).values(), strict=True))),
    "rank distributions, 3 long names": lambda: rank_distributions(
        dict(zip(LONG[:3], densities(3).values(), strict=True))
    ),
    "rank distributions, 60 long names": lambda: rank_distributions(
        {LONG[0].replace("0", f"{i}"): d for i, d in enumerate(densities(60).values())}
    ),
    "rank distributions, ties": lambda: tied([f"features.{i}" for i in range(4)]),
    "rank distributions, ties and long names": lambda: tied(LONG[:5]),
    "tail, long names": lambda: tail(dict.fromkeys(LONG, 0.5), 0.9, 3),
    "tail, 2 long names": lambda: tail(dict.fromkeys(LONG[:2], 0.5), 0.9, 1),
    "heat, long names": lambda: heat_map(gaussian(9, 3), LONG, (0, 10, 20), "OPT fraction"),
    "heat, long run": lambda: heat_map(gaussian(9, 21), LONG, range(0, 210_000, 10_000), "OPT fraction"),
    "heat, large numbers": lambda: heat_map(5e5 * gaussian(9, 3), LONG, (0, 10, 20), "OPT fraction"),
    "basin, named classes": lambda: basin(12, names=[f"class {k}: 0.0123" for k in range(12)]),
    "basin, far": lambda: basin_curves(torch.logspace(-3, 4, 60), curve(0.3), None, 0.5, 0.3, (0.25, 0.4)),
    "maps, large weights": lambda: characteristic_maps(1e6 * gaussian(3, 8, 8)),
    "maps, one dot": lambda: characteristic_maps(1e6 * gaussian(3, 1, 1)),
    "subnetwork": lambda: subnetwork(torch.zeros(10, 4), torch.ones(10, 4), gaussian(10, 4, 28, 28)),
    "subnetwork, small weights": lambda: subnetwork(torch.zeros(10, 4), torch.ones(10, 4), 1e-4 * gaussian(10, 4, 64)),
}


@pytest.mark.parametrize("make", (ALL | ODD).values(), ids=ALL | ODD)
def test_everything_has_room(make):
    """Nothing reaches beyond the picture; neither axes nor legends, notes or numbers below axes cover one another."""
    figure = make()
    drawing.pixels(figure)
    renderer, (width, height) = figure.canvas.get_renderer(), figure.bbox.size
    for part in [*figure.axes, *figure.legends]:
        box = part.get_tightbbox(renderer)
        assert -1 <= box.x0 < box.x1 <= width + 1
        assert -1 <= box.y0 < box.y1 <= height + 1
    legends = [each.get_tightbbox(renderer) for each in figure.legends]
    apart = [[axes.bbox for axes in figure.axes] + legends]
    for axes in figure.axes:
        apart.append([text.get_window_extent(renderer) for text in axes.texts] + legends)
        ticks = [tick.label1 for tick in axes.xaxis._update_ticks()]
        apart.append([label.get_window_extent(renderer) for label in ticks if label.get_rotation() == 0])
    for one, other in (pair for boxes in apart for pair in itertools.combinations(boxes, 2)):
        across, down = min(one.x1, other.x1) - max(one.x0, other.x0), min(one.y1, other.y1) - max(one.y0, other.y0)
        assert min(across, down) <= 1


@pytest.mark.parametrize("on", [True, False])
def test_the_collector_is_left_as_it_was_also_by_an_error(on, monkeypatch):
    calls = []
    monkeypatch.setattr(drawing.gc, "isenabled", lambda: on)
    for name in ("enable", "disable"):
        monkeypatch.setattr(drawing.gc, name, lambda name=name: calls.append(name))
    with pytest.raises(KeyError), drawing.without_collector():
        raise KeyError
    assert calls == ["disable", "enable"][: 1 + on]
