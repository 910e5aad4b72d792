"""Curves of ranks, tails and basins: what is drawn is what was given."""

import warnings

import matplotlib as mpl
import pytest
import torch
from matplotlib.collections import LineCollection

from drawings import ALL, INF, NAN, SIGMA, accuracies, axes_of, basin, curve, densities, drawn_line, legend_of, names_on
from netdyn._utils import drawing
from netdyn.report.figures.curves import basin_curves, rank_distributions, tail

# Rank distributions ---------------------------------------------------------------------------------------------------


def test_rank_distributions_are_drawn_at_the_middles_of_their_bins():
    given = densities(4, bins=10)
    figure = rank_distributions(given)
    for i, density in enumerate(given.values()):
        x, y = drawn_line(axes_of(figure), f"net.{i}.fc")
        assert x.tolist() == pytest.approx([0.05 + 0.1 * j for j in range(10)])
        assert y.tolist() == density.tolist()
    assert legend_of(figure) == ["net.0.fc", "net.1.fc", "net.2.fc", "net.3.fc"]


def test_a_line_marks_no_order():
    (line,) = (line for line in axes_of(ALL["rank distributions"]()).lines if line.get_linestyle() == "--")
    assert set(line.get_ydata()) == {1.0}


def test_layers_go_from_dark_to_light():
    def brightness(line):
        return sum(mpl.colors.to_rgb(line.get_color()))

    lines = [line for line in axes_of(rank_distributions(densities(7))).lines if line.get_linestyle() == "-"]
    shades = [brightness(line) for line in lines]
    assert shades == sorted(shades)
    assert shades[-1] - shades[0] > 0.8


def test_many_layers_share_a_scale_with_some_names():
    figure = rank_distributions(densities(100))
    assert len(axes_of(figure).lines) == 101
    assert legend_of(figure) == []
    names = names_on(figure.axes[1].yaxis)
    assert (len(names), names[0], names[-1]) == (12, "net.0.fc", "net.99.fc")


@pytest.mark.parametrize(("height", "tied", "noted"), [(2.0, 0.4, True), (2.0, 0.01, False), (1.2, 0.4, False)])
@pytest.mark.parametrize("place", [0, 7, 19])
def test_a_spike_of_ties_is_noted(height, tied, noted, place):
    spiked, flat = torch.ones(20), torch.ones(20)
    spiked[place] = height
    figure = rank_distributions({"conv": spiked, "fc": flat}, {"conv": tied, "fc": 0.9})
    notes = [text.get_text() for text in axes_of(figure).texts]
    assert notes == ["spikes are ties:\nequal local fields in\nconv"] * noted


# Linear tail ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [0, 3, 4])
def test_the_tail_is_drawn_and_the_linear_layers_shaded(depth):
    figure = tail(accuracies(5), 0.93, depth)
    axes = axes_of(figure)
    x, y = drawn_line(axes, "linear tail")
    assert (x.tolist(), y.tolist()) == ([0, 1, 2, 3, 4], [0.2, 0.4, 0.6, 0.8, 1.0])
    assert drawn_line(axes, "network")[1].tolist() == [0.93, 0.93]
    (band,) = axes.patches
    assert (band.get_x(), band.get_x() + band.get_width()) == (depth - 0.5, 4.5)
    assert legend_of(figure) == ["acts linearly", "network", "linear tail"]
    assert names_on(axes.xaxis) == [f"net.{i}.fc" for i in range(5)]


def test_no_linear_layer_nothing_shaded():
    figure = tail(accuracies(5), 0.93, 5)
    assert not axes_of(figure).patches
    assert legend_of(figure) == ["network", "linear tail"]


def test_a_network_that_knows_nothing_has_no_functional_depth():
    figure = tail(accuracies(5), 0.1, NAN)
    assert not axes_of(figure).patches
    assert legend_of(figure) == ["network (no better than chance)", "linear tail"]


# Basins ---------------------------------------------------------------------------------------------------------------


def test_basin_curves_are_drawn_on_a_logarithmic_axis():
    axes = axes_of(basin(3))
    assert axes.get_xscale() == "log"
    x, y = drawn_line(axes, "all samples")
    assert (x.tolist(), y.tolist()) == (SIGMA.tolist(), curve(0.3).tolist())
    for k in range(3):
        assert drawn_line(axes, f"class {k}")[1].tolist() == curve(0.1 * 1.01**k).tolist()


@pytest.mark.parametrize("classes", [13, 1000])
def test_many_classes_are_drawn_all_alike(classes):
    figure = basin(classes)
    (lines,) = (artist for artist in axes_of(figure).collections if isinstance(artist, LineCollection))
    segments = lines.get_segments()
    assert len(segments) == classes
    assert segments[-1][:, 1].tolist() == curve(0.1 * 1.01 ** (classes - 1)).tolist()
    assert legend_of(figure)[0] == f"{classes} classes"


def test_classes_have_looks_of_their_own():
    figure = basin(12)
    looks = {(line.get_color(), line.get_linestyle()) for line in axes_of(figure).lines if "class" in line.get_label()}
    assert len(looks) == 12


def test_classes_are_named_with_their_radii():
    figure = basin(2, names=["class 0: 0.1, 0.08 to 0.2", "class 1: above 10, 2 to above 10"])
    assert legend_of(figure)[:2] == ["class 0: 0.1, 0.08 to 0.2", "class 1: above 10, 2 to above 10"]


def test_absent_classes_are_not_drawn():
    per_class = torch.stack([curve(0.1), torch.full_like(SIGMA, NAN), curve(0.2)])
    figure = basin_curves(SIGMA, curve(0.3), per_class, 0.5, 0.3, (0.2, 0.4))
    assert legend_of(figure)[:3] == ["class 0", "class 2", "all samples"]


@pytest.mark.parametrize(
    ("radius", "interval", "text", "place", "ends", "marker"),
    [
        (0.3, (0.25, 0.4), "radius 0.3", 0.3, (0.25, 0.4), "o"),
        (0.3, (0.0, INF), "radius 0.3", 0.3, (1e-3, 10), "o"),
        (INF, (2.0, INF), "radius above 10", 10, (2, 10), ">"),
        (INF, (INF, INF), "radius above 10", 10, (10, 10), ">"),
        (0.0, (0.0, 0.01), "radius 0", 1e-3, (1e-3, 0.01), "<"),
        (2e-4, (1e-4, 3e-4), "radius 0.0002", 1e-3, (1e-3, 1e-3), "<"),
    ],
)
def test_radius_and_interval_are_marked_at_the_accuracy(radius, interval, text, place, ends, marker):
    axes = axes_of(basin(radius=radius, interval=interval))
    x, y = drawn_line(axes, text)
    assert (x.tolist(), y.tolist()) == (pytest.approx([place]), [0.5])
    assert [line.get_marker() for line in axes.lines if line.get_label() == text] == [marker]
    x, y = drawn_line(axes, "its interval")
    assert (x.tolist(), y.tolist()) == (pytest.approx(ends), [0.5, 0.5])


def test_a_curve_of_one_level_has_an_axis():
    one = torch.tensor([1.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = basin_curves(one, torch.tensor([0.1]), None, 0.5, 0.0, (0.0, 0.0))
        assert drawing.pixels(figure).shape[0] > 0
    assert axes_of(figure).get_xlim() == pytest.approx((0.1, 10))


def test_without_a_radius_nothing_is_marked():
    assert not any("radius" in text for text in legend_of(ALL["basin, NaN"]()))


def test_labels_of_noise_levels_are_no_formulas():
    formatter = axes_of(basin()).xaxis.get_major_formatter()
    assert [formatter(level) for level in (0.001, 10.0)] == ["0.001", "10"]


def test_the_noise_has_a_unit():
    assert axes_of(basin()).get_xlabel() == "noise level (σ per input component)"
    assert axes_of(basin(unit="standard deviations of each weight")).get_xlabel().endswith("of each weight)")
