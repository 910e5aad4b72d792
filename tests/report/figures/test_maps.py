"""Characteristic maps, subnetworks and heat maps: what is drawn is what was given."""

import re

import numpy as np
import pytest
import torch
from matplotlib.collections import PolyCollection, QuadMesh

from drawings import ALL, INF, NAN, axes_of, gaussian, heat, names_on
from netdyn._utils import drawing
from netdyn.report.figures.maps import COLOURS, characteristic_maps, heat_map, subnetwork

# Characteristic maps --------------------------------------------------------------------------------------------------


def images_of(figure, width):
    """The inputs of each panel, ``width`` in a row: each is a square of dots of the one image."""
    (image,) = axes_of(figure).images
    whole = image.get_array().filled(np.nan)
    assert image.get_extent() == [0, whole.shape[1], whole.shape[0], 0]
    found, rest = [], whole.copy()
    for panel in panels_of(figure):
        left, right, upper, lower = map(round, panel)
        assert panel == (left, right, upper, lower)
        part, dots = whole[upper:lower, left:right], (right - left) // width
        found.append(part[::dots, ::dots])
        assert np.array_equal(part, found[-1].repeat(dots, axis=0).repeat(dots, axis=1), equal_nan=True)
        rest[upper:lower, left:right] = np.nan
    assert np.isnan(rest).all()
    return found


def titles_of(figure):
    return [text.get_text() for text in axes_of(figure).texts]


@pytest.mark.parametrize("classes", [1, 2, 3, 10, 20])
def test_images_are_drawn_as_they_are_on_one_scale(classes):
    maps = gaussian(classes, 4, 6)
    figure = characteristic_maps(maps)
    assert titles_of(figure) == [str(k) for k in range(classes)]
    assert all(np.array_equal(image, map_) for image, map_ in zip(images_of(figure, 6), maps.double(), strict=True))
    limit = float(maps.double().abs().max())
    assert {image.get_clim() for image in axes_of(figure).images} == {(-limit, limit)}


def panels_of(figure):
    """Left, right, upper and lower end of each panel, as it is framed."""
    (frames,) = (c for c in axes_of(figure).collections if isinstance(c, PolyCollection) and len(c.get_edgecolor()))
    corners = [path.vertices for path in frames.get_paths()]
    return [(c[:, 0].min(), c[:, 0].max(), c[:, 1].min(), c[:, 1].max()) for c in corners]


@pytest.mark.parametrize("shape", [(1, 5, 5), (10, 4, 6), (7, 30, 2), (5, 2, 30), (1, 5), (20, 784)])
def test_panels_and_titles_lie_within_the_sheet_and_apart(shape):
    figure = characteristic_maps(gaussian(*shape))
    drawing.pixels(figure)
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


@pytest.mark.parametrize("shape", [(3, 4, 6), (3, 1, 2), (2, 60, 90)])
def test_images_fill_their_panels_with_square_inputs(shape):
    figure = characteristic_maps(gaussian(*shape))
    for left, right, upper, lower in panels_of(figure):
        assert (right - left) / shape[2] == (lower - upper) / shape[1] >= 1
    assert axes_of(figure).get_aspect() == 1


def test_channels_are_summed():
    maps = gaussian(2, 3, 4, 6)
    found = images_of(characteristic_maps(maps), 6)
    assert all(np.allclose(image, map_.double().sum(0)) for image, map_ in zip(found, maps, strict=True))


def bars_of(figure):
    """The heights of each panel's bars, as shares of the distance from its middle to its edge."""
    panels = panels_of(figure)
    heights = 0
    for colour in COLOURS:
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
    bars, expected = bars_of(characteristic_maps(maps)), maps.double().flatten(1).numpy()
    # The highest bar ends shortly before the frame.
    assert np.abs(bars).max() == pytest.approx(1 / 1.05)
    assert np.allclose(bars * 1.05 * np.abs(expected).max(), expected)


def test_bars_have_round_numbers_beside_each_row_and_below_the_last():
    figure = characteristic_maps(torch.linspace(-0.21, 0.21, 600).repeat(5, 1))
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
    figure = subnetwork(units, shares, maps)
    assert titles_of(figure)[:3] == ["0: unit 3, 50 %", "0: unit 1, 25 %", "1: unit 0, 40 %"]
    assert np.array_equal(images_of(figure, 4)[3], maps[1, 1].double())
    panels = panels_of(figure)
    assert panels[0][2:] == panels[1][2:]
    assert panels[0][:2] == panels[2][:2]


@pytest.mark.parametrize("shape", [(784,), (28, 28), (3, 8, 8)])
def test_forty_maps_share_one_pair_of_axes(shape):
    figure = subnetwork(torch.zeros(10, 4).long(), torch.zeros(10, 4), gaussian(10, 4, *shape))
    # Beside it there is the scale of the images' colours.
    assert len(figure.axes) == 1 + (len(shape) > 1)
    assert len(figure.axes[0].collections) <= 5


@pytest.mark.parametrize("shape", [(21, 5), (1000, 5, 5)])
def test_the_first_twenty_classes_are_shown_and_the_rest_counted(shape):
    figure = characteristic_maps(gaussian(*shape))
    assert titles_of(figure) == [str(k) for k in range(20)]
    assert figure.get_suptitle() == f"How each logit weighs the inputs (the first 20 of {shape[0]} classes)"


def test_a_figure_of_all_classes_says_what_it_shows():
    assert characteristic_maps(gaussian(20, 5)).get_suptitle() == "How each logit weighs the inputs"


def test_classes_may_have_names():
    figure = characteristic_maps(gaussian(2, 3, 3), ["cat", "dog"])
    assert titles_of(figure) == ["cat", "dog"]


def test_the_scale_comes_from_finite_numbers():
    figure = ALL["maps, NaN and inf"]()
    assert figure.axes[0].images[0].get_clim() == (-2, 2)
    assert ALL["maps, zero"]().axes[0].images[0].get_clim() == (-1, 1)


# Heat maps ------------------------------------------------------------------------------------------------------------


def mesh_of(figure):
    (mesh,) = (artist for artist in axes_of(figure).collections if isinstance(artist, QuadMesh))
    return mesh


def edges_of(figure):
    return mesh_of(figure).get_coordinates()[0, :, 0].tolist()


def test_the_heat_map_shows_the_numbers():
    figure, values = heat(4, (0, 10, 20, 30, 40))
    assert np.array_equal(mesh_of(figure).get_array(), values.double())
    assert names_on(axes_of(figure).yaxis) == [f"net.{i}.fc" for i in range(4)]
    assert axes_of(figure).get_ylim() == (-0.5, 3.5)
    assert figure.get_suptitle() == "OPT fraction, per layer"


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
def test_very_uneven_steps_are_on_a_logarithmic_axis_that_is_labelled_so(steps, scale):
    axes = axes_of(heat(2, steps)[0])
    assert axes.get_xscale() == scale
    assert ("logarithmic" in axes.get_xlabel()) == (scale == "symlog")


def test_what_is_not_finite_is_blank():
    values = torch.tensor([[0.0, NAN], [INF, 1.0]])
    figure = heat_map(values, ["a", "b"], [0, 1], "x")
    assert np.ma.getmaskarray(mesh_of(figure).get_array()).tolist() == [[False, True], [True, False]]
    assert mesh_of(figure).get_clim() == (0, 1)


@pytest.mark.parametrize(("limits", "colours"), [((0.0, 1.0), "cividis"), ((-5.4, 5.4), "RdBu_r"), (None, "cividis")])
def test_the_scale_may_be_fixed_and_is_two_coloured_about_zero(limits, colours):
    figure, values = heat(limits=limits)
    assert mesh_of(figure).get_clim() == (limits or (float(values.double().min()), float(values.double().max())))
    assert mesh_of(figure).get_cmap().name == colours


def test_of_many_layers_some_are_named():
    names = names_on(axes_of(heat(100)[0]).yaxis)
    assert (len(names), names[0], names[-1]) == (12, "net.0.fc", "net.99.fc")


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
        heat_map(values, ["a", "b"], steps, "x")
