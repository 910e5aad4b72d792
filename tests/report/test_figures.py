"""What is drawn is what came in; nothing global is touched; odd numbers of layers and classes fit."""

import math
import re
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection, PolyCollection, QuadMesh
from matplotlib.figure import Figure

from netdyn.report.figures import canvas
from netdyn.report.figures import curves as figures
from netdyn.report.figures import maps as radiographs

NAN, INF = math.nan, math.inf


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def densities(layers, bins=20):
    values = gaussian(layers, bins).abs()
    values /= values.mean(dim=1, keepdim=True)
    return {f"net.{i}.fc": row for i, row in enumerate(values)}


def accuracies(layers):
    return {f"net.{i}.fc": (i + 1) / layers for i in range(layers)}


SIGMA = torch.logspace(-3, 1, 60)


def curve(middle):
    return 0.9 / (1 + (SIGMA / middle) ** 2)


def basin(classes=3, radius=0.3, interval=(0.25, 0.4), **options):
    per_class = None if classes is None else torch.stack([curve(0.1 * 1.01**k) for k in range(classes)])
    return figures.basin_curves(SIGMA, curve(0.3), per_class, 0.5, radius, interval, **options)


def heat(layers=3, steps=(0, 10, 20), **options):
    values = gaussian(layers, len(steps))
    return figures.heat_map(values, [f"net.{i}.fc" for i in range(layers)], steps, "OPT fraction", **options), values


def axes_of(figure):
    return figure.axes[0]


def drawn_line(axes, label):
    (line,) = (line for line in axes.lines if line.get_label() == label)
    return np.asarray(line.get_xdata(), dtype=float), np.asarray(line.get_ydata(), dtype=float)


def legend_of(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def names_on(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


ALL = {
    "rank distributions": lambda: figures.rank_distributions(densities(5)),
    "rank distributions, 100 layers": lambda: figures.rank_distributions(densities(100)),
    "rank distributions, 1 layer": lambda: figures.rank_distributions(densities(1)),
    "rank distributions, no layer": lambda: figures.rank_distributions({}),
    "tail": lambda: figures.tail(accuracies(5), 0.9, 3),
    "tail, 100 layers": lambda: figures.tail(accuracies(100), 0.9, 100),
    "tail, 1 layer": lambda: figures.tail(accuracies(1), 0.9, NAN),
    "tail, no layer": lambda: figures.tail({}, 0.9, NAN),
    "tail, NaN": lambda: figures.tail({"a": NAN, "b": 0.5}, NAN, NAN),
    "basin": basin,
    "basin, no classes": lambda: basin(None),
    "basin, 2 classes": lambda: basin(2),
    "basin, 1000 classes": lambda: basin(1000),
    "basin, infinite": lambda: basin(radius=INF, interval=(2.0, INF)),
    "basin, all infinite": lambda: basin(radius=INF, interval=(INF, INF)),
    "basin, zero": lambda: basin(radius=0.0, interval=(0.0, 0.0)),
    "basin, NaN": lambda: basin(radius=NAN, interval=(NAN, NAN)),
    "maps, images": lambda: figures.characteristic_maps(gaussian(10, 8, 8)),
    "maps, colour": lambda: figures.characteristic_maps(gaussian(2, 3, 8, 8)),
    "maps, flat": lambda: figures.characteristic_maps(gaussian(10, 6)),
    "maps, 1000 classes": lambda: figures.characteristic_maps(gaussian(1000, 5)),
    "maps, one logit": lambda: figures.characteristic_maps(gaussian(1, 5, 5)),
    "maps, NaN and inf": lambda: figures.characteristic_maps(torch.tensor([[[NAN, 1.0], [INF, -2.0]]])),
    "maps, zero": lambda: figures.characteristic_maps(torch.zeros(3, 4, 4)),
    "maps, volumes": lambda: figures.characteristic_maps(gaussian(3, 2, 2, 2, 2)),
    "heat": lambda: heat()[0],
    "heat, 100 layers": lambda: heat(100, list(range(0, 1000, 7)))[0],
    "heat, one step": lambda: heat(1, [0])[0],
    "heat, uneven": lambda: heat(4, [0, 1, 2, 4, 8, 1000, 50000])[0],
    "heat, NaN": lambda: figures.heat_map(torch.full((2, 2), NAN), ["a", "b"], [0, 1], "x"),
}
every_figure = pytest.mark.parametrize("make", ALL.values(), ids=ALL)
every_function = pytest.mark.parametrize(
    "name", ["rank distributions", "tail", "basin", "maps, colour", "heat, uneven"]
)


# What all have in common ---------------------------------------------------------------------------------------------


@every_figure
def test_a_figure_becomes_an_image_that_is_not_empty(make):
    figure = make()
    assert isinstance(figure, Figure)
    image = canvas.pixels(figure)
    assert (image.dtype, image.ndim, image.shape[2]) == (torch.uint8, 3, 3)
    assert image.shape[:2] == (round(figure.get_figheight() * 160), round(4.8 * 160))
    assert len(image.reshape(-1, 3).unique(dim=0)) > 2


@every_function
def test_the_same_numbers_give_the_same_image_whatever_the_users_style(name):
    expected = canvas.pixels(ALL[name]())
    assert torch.equal(canvas.pixels(ALL[name]()), expected)
    odd = {"font.size": 30.0, "axes.facecolor": "red", "lines.linewidth": 9.0, "text.usetex": True}
    with mpl.rc_context(odd):
        assert torch.equal(canvas.pixels(ALL[name]()), expected)
        assert {key: mpl.rcParams[key] for key in odd} == odd


@every_function
def test_nothing_is_left_with_pyplot(name):
    from matplotlib import pyplot as plt

    canvas.pixels(ALL[name]())
    assert plt.get_fignums() == []


def test_pyplot_is_not_loaded():
    code = (
        "import sys, torch\nfrom netdyn import canvas, figures\nassert 'matplotlib' not in sys.modules\n"
        "canvas.pixels(figures.heat_map(torch.rand(2, 3), ['a', 'b'], [0, 5, 10], 'share'))\n"
        "assert 'matplotlib' in sys.modules\nprint('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_style_is_put_back_when_drawing_fails():
    with mpl.rc_context({"font.size": 30.0}):
        with pytest.raises(ValueError, match="steps"):
            figures.heat_map(torch.zeros(1, 2), ["a"], [1, 1], "x")
        assert mpl.rcParams["font.size"] == 30.0


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(canvas, "available", lambda: False)
    text = "netdyn draws no figures, for matplotlib is not installed. Get it with: pip install 'netdyn[plot]'."
    with pytest.raises(ImportError, match=f"^{re.escape(text)}$"):
        figures.tail({"a": 0.5}, 0.5, 0)


def test_matplotlib_is_looked_for_without_loading_it(monkeypatch):
    assert canvas.available()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not canvas.available()


@pytest.mark.parametrize("name", ["a$b$c", "a_b^c", "\\alpha", "%", "_hidden", "Ω—层"])
def test_names_are_not_read_as_formulas(name):
    figure = figures.rank_distributions({name: torch.ones(5)})
    assert canvas.pixels(figure).float().std() > 0


# Rank distributions --------------------------------------------------------------------------------------------------


def test_rank_distributions_are_drawn_at_the_middles_of_their_bins():
    given = densities(4, bins=10)
    figure = figures.rank_distributions(given)
    for i, density in enumerate(given.values()):
        x, y = drawn_line(axes_of(figure), f"{i}.fc")
        assert x.tolist() == pytest.approx([0.05 + 0.1 * j for j in range(10)])
        assert y.tolist() == density.tolist()
    assert legend_of(figure) == ["0.fc", "1.fc", "2.fc", "3.fc"]


def test_a_line_marks_no_order():
    (line,) = (line for line in axes_of(ALL["rank distributions"]()).lines if line.get_linestyle() == "--")
    assert set(line.get_ydata()) == {1.0}


def test_layers_go_from_dark_to_light():
    def brightness(line):
        return sum(mpl.colors.to_rgb(line.get_color()))

    lines = [line for line in axes_of(figures.rank_distributions(densities(7))).lines if line.get_linestyle() == "-"]
    shades = [brightness(line) for line in lines]
    assert shades == sorted(shades)
    assert shades[-1] - shades[0] > 0.8


def test_many_layers_share_a_scale_with_some_names():
    figure = figures.rank_distributions(densities(100))
    assert len(axes_of(figure).lines) == 101
    assert legend_of(figure) == []
    names = names_on(figure.axes[1].yaxis)
    assert (len(names), names[0], names[-1]) == (12, "0.fc", "99.fc")


# Linear tail ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [0, 3, 4])
def test_the_tail_is_drawn_and_the_linear_layers_shaded(depth):
    figure = figures.tail(accuracies(5), 0.93, depth)
    axes = axes_of(figure)
    x, y = drawn_line(axes, "linear tail")
    assert (x.tolist(), y.tolist()) == ([0, 1, 2, 3, 4], [0.2, 0.4, 0.6, 0.8, 1.0])
    assert drawn_line(axes, "network")[1].tolist() == [0.93, 0.93]
    (band,) = axes.patches
    assert (band.get_x(), band.get_x() + band.get_width()) == (depth - 0.5, 4.5)
    assert legend_of(figure) == ["acts linearly", "network", "linear tail"]
    assert names_on(axes.xaxis) == ["0.fc", "1.fc", "2.fc", "3.fc", "4.fc"]


def test_no_linear_layer_nothing_shaded():
    figure = figures.tail(accuracies(5), 0.93, 5)
    assert not axes_of(figure).patches
    assert legend_of(figure) == ["network", "linear tail"]


def test_a_network_that_knows_nothing_has_no_functional_depth():
    figure = figures.tail(accuracies(5), 0.1, NAN)
    assert not axes_of(figure).patches
    assert legend_of(figure) == ["network (no better than chance)", "linear tail"]


# Basins --------------------------------------------------------------------------------------------------------------


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


def test_absent_classes_are_not_drawn():
    per_class = torch.stack([curve(0.1), torch.full_like(SIGMA, NAN), curve(0.2)])
    figure = figures.basin_curves(SIGMA, curve(0.3), per_class, 0.5, 0.3, (0.2, 0.4))
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


def test_without_a_radius_nothing_is_marked():
    assert not any("radius" in text for text in legend_of(ALL["basin, NaN"]()))


def test_the_noise_has_a_unit():
    assert axes_of(basin()).get_xlabel() == "noise level (σ per input component)"
    assert axes_of(basin(unit="standard deviations of each weight")).get_xlabel().endswith("of each weight)")


# Characteristic maps -------------------------------------------------------------------------------------------------


def images_of(figure):
    return [np.asarray(image.get_array()) for image in axes_of(figure).images]


def titles_of(figure):
    return [text.get_text() for text in axes_of(figure).texts]


@pytest.mark.parametrize("classes", [1, 2, 3, 10, 20])
def test_images_are_drawn_as_they_are_on_one_scale(classes):
    maps = gaussian(classes, 4, 6)
    figure = figures.characteristic_maps(maps)
    assert titles_of(figure) == [str(k) for k in range(classes)]
    assert all(np.array_equal(image, map_) for image, map_ in zip(images_of(figure), maps.double(), strict=True))
    limit = float(maps.double().abs().max())
    assert {image.get_clim() for image in axes_of(figure).images} == {(-limit, limit)}


def panels_of(figure):
    """Left, right, upper and lower end of each panel, as it is framed."""
    (frames,) = (c for c in axes_of(figure).collections if isinstance(c, PolyCollection) and len(c.get_edgecolor()))
    corners = [path.vertices for path in frames.get_paths()]
    return [(c[:, 0].min(), c[:, 0].max(), c[:, 1].min(), c[:, 1].max()) for c in corners]


@pytest.mark.parametrize("shape", [(1, 5, 5), (10, 4, 6), (7, 30, 2), (5, 2, 30), (1, 5), (20, 784)])
def test_panels_and_titles_lie_within_the_sheet_and_apart(shape):
    figure = figures.characteristic_maps(gaussian(*shape))
    canvas.pixels(figure)
    axes, panels = axes_of(figure), panels_of(figure)
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert len(panels) == len(axes.texts) == shape[0]
    for a, b, upper, lower in panels:
        assert left - 1e-6 <= a < b <= right + 1e-6
        assert top < upper < lower <= bottom + 1e-6
    for i, (a, b, upper, lower) in enumerate(panels):
        assert all(b < c or d < a or lower < u or v < upper for c, d, u, v in panels[:i])
    drawn = figure.canvas.get_renderer()
    framed = [axes.transData.transform([(a, lower), (b, upper)]) for a, b, upper, lower in panels]
    for i, text in enumerate(axes.texts):
        box = text.get_window_extent(drawn)
        assert framed[i][1][1] <= box.y0
        assert all(box.y1 <= low[1] or high[1] <= box.y0 or box.x1 < low[0] or high[0] < box.x0 for low, high in framed)
        assert figure.bbox.contains(box.x0, box.y0)
        assert figure.bbox.contains(box.x1, box.y1)


def test_images_fill_their_panels_with_square_inputs():
    figure = figures.characteristic_maps(gaussian(3, 4, 6))
    for image, (left, right, upper, lower) in zip(axes_of(figure).images, panels_of(figure), strict=True):
        assert image.get_extent() == [left, right, lower, upper]
        assert (right - left, lower - upper) == pytest.approx((6, 4))
    assert axes_of(figure).get_aspect() == 1


def test_channels_are_summed():
    maps = gaussian(2, 3, 4, 6)
    found = images_of(figures.characteristic_maps(maps))
    assert all(np.allclose(image, map_.double().sum(0)) for image, map_ in zip(found, maps, strict=True))


def bars_of(figure):
    """The heights of each panel's bars, as shares of the distance from its middle to its edge."""
    panels = panels_of(figure)
    heights = 0
    for colour in radiographs.COLOURS:
        (bars,) = (c for c in axes_of(figure).collections if c.get_label() == colour)
        outlines = np.array([path.vertices[:-1, 1] for path in bars.get_paths()])
        middle = np.array([(upper + lower) / 2 for _, _, upper, lower in panels])[:, None]
        half = np.array([(lower - upper) / 2 for _, _, upper, lower in panels])[:, None]
        assert np.array_equal(outlines[:, 1:-1:2], outlines[:, 2:-1:2])
        heights = heights + (middle - outlines[:, 1:-1:2]) / half
    return heights


@pytest.mark.parametrize("shape", [(2, 5), (10, 784), (3, 2, 2, 2, 2), (20, 1)])
def test_flat_maps_are_bars_on_one_scale(shape):
    maps = gaussian(*shape)
    bars, expected = bars_of(figures.characteristic_maps(maps)), maps.double().flatten(1).numpy()
    # The highest bar ends shortly before the frame.
    assert np.abs(bars).max() == pytest.approx(1 / 1.05)
    assert np.allclose(bars * 1.05 * np.abs(expected).max(), expected)


def test_bars_have_round_numbers_beside_each_row_and_below_the_last():
    figure = figures.characteristic_maps(torch.linspace(-0.21, 0.21, 600).repeat(5, 1))
    axes = axes_of(figure)
    assert names_on(axes.yaxis) == ["−0.2", "0", "0.2"] * 2
    assert names_on(axes.xaxis) == ["0", "500"] * 2
    panels = panels_of(figure)
    for row, (_, _, upper, lower) in enumerate((panels[0], panels[3])):
        middle, half = (upper + lower) / 2, (lower - upper) / 2 / 1.05
        places = axes.get_yticks()[3 * row : 3 * row + 3]
        assert places == pytest.approx([middle + half * 0.2 / 0.21, middle, middle - half * 0.2 / 0.21])
    assert axes.get_xticks() == pytest.approx([panels[k][0] + at + 0.5 for k in (3, 4) for at in (0, 500)])


def test_a_subnetwork_has_a_row_a_class_and_a_column_a_unit():
    units, shares = torch.tensor([[3, 1], [0, 2], [5, 4]]), torch.tensor([[0.5, 0.25], [0.4, 0.3], [1.0, 0.0]])
    maps = gaussian(3, 2, 4, 4)
    figure = figures.subnetwork(units, shares, maps)
    assert titles_of(figure)[:3] == ["0: unit 3, 50%", "0: unit 1, 25%", "1: unit 0, 40%"]
    assert np.array_equal(images_of(figure)[3], maps[1, 1].double())
    panels = panels_of(figure)
    assert panels[0][2:] == panels[1][2:]
    assert panels[0][:2] == panels[2][:2]


@pytest.mark.parametrize("shape", [(21, 5), (1000, 5, 5)])
def test_the_first_twenty_classes_are_shown_and_the_rest_counted(shape):
    figure = figures.characteristic_maps(gaussian(*shape))
    assert titles_of(figure) == [str(k) for k in range(20)]
    assert figure.get_suptitle() == f"the first 20 of {shape[0]} classes"


def test_all_classes_shown_nothing_said():
    assert figures.characteristic_maps(gaussian(20, 5)).get_suptitle() == ""


def test_classes_may_have_names():
    figure = figures.characteristic_maps(gaussian(2, 3, 3), ["cat", "dog"])
    assert titles_of(figure) == ["cat", "dog"]


def test_the_scale_comes_from_finite_numbers():
    figure = ALL["maps, NaN and inf"]()
    assert figure.axes[0].images[0].get_clim() == (-2, 2)
    assert ALL["maps, zero"]().axes[0].images[0].get_clim() == (-1, 1)


# Heat maps -----------------------------------------------------------------------------------------------------------


def mesh_of(figure):
    (mesh,) = (artist for artist in axes_of(figure).collections if isinstance(artist, QuadMesh))
    return mesh


def edges_of(figure):
    return mesh_of(figure).get_coordinates()[0, :, 0].tolist()


def test_the_heat_map_shows_the_numbers():
    figure, values = heat(4, (0, 10, 20, 30, 40))
    assert np.array_equal(mesh_of(figure).get_array(), values.double())
    assert names_on(axes_of(figure).yaxis) == ["0.fc", "1.fc", "2.fc", "3.fc"]
    assert axes_of(figure).get_ylim() == (-0.5, 3.5)
    assert figure.axes[1].get_ylabel() == "OPT fraction"


@pytest.mark.parametrize(
    ("steps", "edges"),
    [
        ([0, 10, 20], [0, 5, 15, 25]),
        ([10, 20, 40], [5, 15, 30, 50]),
        ([1, 2, 4, 8], [0.5, 1.5, 3, 6, 10]),
        ([7], [6.5, 7.5]),
        ([0, 100], [0, 50, 150]),
        ([5, 1000], [0, 502.5, 1497.5]),
    ],
)
def test_columns_reach_halfway_to_their_neighbours(steps, edges):
    assert edges_of(heat(2, steps)[0]) == edges


@pytest.mark.parametrize(
    ("steps", "scale"),
    [
        ([0, 1, 2, 4, 8, 16, 1000], "symlog"),
        ([0, 10, 20, 30, 50], "linear"),
        ([0, 10, 20, 219], "linear"),
        ([3], "linear"),
    ],
)
def test_very_uneven_steps_stand_on_a_logarithmic_axis_that_says_so(steps, scale):
    axes = axes_of(heat(2, steps)[0])
    assert axes.get_xscale() == scale
    assert ("logarithmic" in axes.get_xlabel()) == (scale == "symlog")


def test_what_is_not_finite_is_blank():
    values = torch.tensor([[0.0, NAN], [INF, 1.0]])
    figure = figures.heat_map(values, ["a", "b"], [0, 1], "x")
    assert np.ma.getmaskarray(mesh_of(figure).get_array()).tolist() == [[False, True], [True, False]]
    assert mesh_of(figure).get_clim() == (0, 1)


@pytest.mark.parametrize(("limits", "colours"), [((0.0, 1.0), "cividis"), ((-5.4, 5.4), "RdBu_r"), (None, "cividis")])
def test_the_scale_may_be_fixed_and_is_two_coloured_about_zero(limits, colours):
    figure, values = heat(limits=limits)
    assert mesh_of(figure).get_clim() == (limits or (float(values.double().min()), float(values.double().max())))
    assert mesh_of(figure).get_cmap().name == colours


def test_of_many_layers_some_are_named():
    names = names_on(axes_of(heat(100)[0]).yaxis)
    assert (len(names), names[0], names[-1]) == (12, "0.fc", "99.fc")


@pytest.mark.parametrize(
    ("values", "steps", "text"),
    [
        (torch.zeros(2, 3), [0, 1], "`values` must have shape [layers, steps] = [2, 2], got [2, 3]."),
        (torch.zeros(2, 2), [1, 1], "`steps` must increase, got [1, 1]."),
        (torch.zeros(2, 2), [2, 1], "`steps` must increase, got [2, 1]."),
    ],
)
def test_what_does_not_fit_is_refused(values, steps, text):
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        figures.heat_map(values, ["a", "b"], steps, "x")


# Names ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["net.0", "net.1"], ["0", "1"]),
        (["encoder.a.x", "encoder.b.x", "encoder.b.y"], ["a.x", "b.x", "b.y"]),
        (["net", "net.0"], ["net", "net.0"]),
        (["net.conv1", "net.conv12"], ["conv1", "conv12"]),
        (["net.0", "head"], ["net.0", "head"]),
        (["net.0.fc"], ["net.0.fc"]),
        (["a.relu", "a.relu:1"], ["relu", "relu:1"]),
        ([], []),
    ],
)
def test_labels_leave_out_the_modules_that_all_are_in(names, labels):
    assert canvas.layer_labels(names) == labels


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
