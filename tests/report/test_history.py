"""The heat maps of a run: what is kept of each step, what is forgotten, and what is drawn."""

import dataclasses
import json
import math

import numpy as np
import pytest
from matplotlib.collections import QuadMesh

from made_reports import basin, report
from made_reports import layer as made_layer
from netdyn.report import history
from netdyn.report.history import MAPS, SIGNED, History
from netdyn.tags import FIGURES

NAN = math.nan


def layer(name, *numbers):
    """A layer's report with its numbers for the maps."""
    named = dict(zip((kind.partition("/")[2] for kind, _ in MAPS.values()), numbers, strict=True))
    return dataclasses.replace(made_layer(name), **named)


def filled(*steps):
    """At step s layer "a" has the numbers s/100, s/10 and 1 − s/100, and layer "b" half of them."""
    made = History()
    for s in steps:
        numbers = (s / 100, s / 10, 1 - s / 100)
        layers = (layer("a", *numbers), layer("b", *(n / 2 for n in numbers)))
        rest = {"loss": 1.0, "batchnorm_train_gap": 0.0}
        made.add(s, report(*layers, accuracy=s / 100, val_accuracy=0.5, sample=basin(), weight=basin(), **rest))
    return made


def drawn(figure):
    """Values ``[layers, steps]``, NaN where blank, names from bottom to top, and the ends of the colour scale."""
    (mesh,) = (c for c in figure.axes[0].collections if isinstance(c, QuadMesh))
    values = np.ma.filled(np.ma.masked_invalid(mesh.get_array()), NAN)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    return values, names, mesh.get_clim()


def test_each_map_shows_its_number_of_every_layer_and_step():
    figures = filled(0, 10, 20).figures()
    assert set(figures) == {"modes/map", "modes/gradient_map", "linear/map"}
    for tag, rows in {
        "modes/map": [[0, 0.1, 0.2], [0, 0.05, 0.1]],
        "modes/gradient_map": [[0, 1, 2], [0, 0.5, 1]],
        "linear/map": [[1, 0.9, 0.8], [0.5, 0.45, 0.4]],
    }.items():
        values, names, _ = drawn(figures[tag])
        np.testing.assert_allclose(values, rows, atol=1e-7)
        assert names == ["a", "b"]


def test_colours_span_what_there_is_and_gradients_lie_about_zero():
    figures = filled(0, 10, 20).figures()
    assert SIGNED == ("modes/gradient_map",)
    assert {tag: drawn(figure)[2] for tag, figure in figures.items()} == {
        "modes/map": (0, pytest.approx(0.2)),
        "modes/gradient_map": (-2, 2),
        "linear/map": (pytest.approx(0.4), 1),
    }


def test_small_differences_are_not_shown_as_large_ones():
    made = History()
    for step in (0, 1):
        made.add(step, report(layer("a", 0.5, 1.0, 0.97 + 0.01 * step)))
    assert drawn(made.figures()["linear/map"])[2] == pytest.approx((0.97, 1.07))
    assert drawn(made.figures()["modes/map"])[2] == pytest.approx((0.5, 0.6))


def test_gradients_that_are_all_zero_can_be_drawn():
    flat = History()
    for step in (0, 1):
        flat.add(step, report(layer("a", 0.0, 0.0, 0.0)))
    assert drawn(flat.figures()["modes/gradient_map"])[2] == (-1, 1)


def test_every_map_is_in_the_table_of_tags():
    assert set(MAPS) <= {tag.name for tag in FIGURES}


@pytest.mark.parametrize("steps", [(), (5,)])
def test_fewer_than_two_steps_are_no_map(steps):
    assert filled(*steps).figures() == {}


def test_what_was_never_measured_has_no_map():
    made = History()
    for step in (0, 1):
        made.add(step, report(layer("a", 0.5, NAN, NAN)))
    assert set(made.figures()) == {"modes/map"}


def test_a_run_without_layers_has_no_map():
    made = History()
    for step in (0, 1):
        made.add(step, report())
    assert made.figures() == {}


def test_what_is_not_known_is_blank():
    made = History()
    made.add(0, report(layer("a", 0.1, NAN, 0.3)))
    made.add(1, report(layer("b", 0.4, 0.5, math.inf), layer("a", 0.7, 0.8, 0.9)))
    figures = made.figures()
    # In the order of the last step's layers.
    for tag, rows in {
        "modes/map": [[NAN, 0.4], [0.1, 0.7]],
        "modes/gradient_map": [[NAN, 0.5], [NAN, 0.8]],
        "linear/map": [[NAN, NAN], [0.3, 0.9]],
    }.items():
        values, names, _ = drawn(figures[tag])
        np.testing.assert_allclose(values, rows, atol=1e-7)
        assert names == ["b", "a"]


def test_a_step_that_comes_again_is_written_over_and_what_followed_it_is_forgotten():
    made = filled(0, 10, 20, 30)
    made.add(20, report(layer("a", 0.9, 0.9, 0.9)))
    assert made.steps == [0, 10, 20]
    assert {made.rows[-1][f"{kind}/a"] for kind, _ in MAPS.values()} == {0.9}
    made.add(15, report(layer("a", 0.8, 0.8, 0.8)))
    assert made.steps == [0, 10, 15]
    assert len(made.rows) == 3


def test_a_long_run_forgets_every_second_step_and_keeps_both_ends(monkeypatch):
    monkeypatch.setattr(history, "LONGEST", 8)
    made = filled(*range(9))
    assert made.steps == [0, 2, 4, 6, 8]
    assert made.curve("modes/opt_fraction/a") == [0, 0.02, 0.04, 0.06, 0.08]
    for step in range(9, 1000):
        made.add(step, report(layer("a", step / 1000, 0.0, 0.0)))
        assert len(made.steps) == len(made.rows) <= 8
        assert (made.steps[0], made.steps[-1]) == (0, step)
    assert made.curve("modes/opt_fraction/a")[1:] == [step / 1000 for step in made.steps[1:]]


def test_the_state_is_plain_and_taken_up():
    made = filled(0, 10, 20)
    state = json.loads(json.dumps(made.state()))
    assert state == made.state()
    again = History()
    again.load(state)
    assert again == made
    assert set(again.figures()) == set(made.figures())


def test_a_state_is_not_changed_by_what_comes_later():
    made = filled(0, 10)
    state, again = made.state(), History()
    again.load(state)
    made.add(20, report(layer("a", 0.1, 0.1, 0.1)))
    again.add(30, report(layer("a", 0.1, 0.1, 0.1)))
    assert state == filled(0, 10).state()
    assert (made.steps, again.steps) == ([0, 10, 20], [0, 10, 30])


def test_the_numbers_of_the_whole_network_are_kept_as_curves():
    made = History()
    made.add(0, report(accuracy=0.25))
    made.add(5, report(layer("a", 0.1, 0.2, 0.3), accuracy=0.75, val_accuracy=0.5, sample=basin(0.3)))
    assert made.curve("probe/accuracy") == [0.25, 0.75]
    assert made.curve("probe/val_accuracy") == pytest.approx([NAN, 0.5], nan_ok=True)
    assert made.curve("basin/sample/radius") == pytest.approx([NAN, 0.3], nan_ok=True)
    assert made.curves("modes/dead_fraction").tolist() == [pytest.approx([NAN, 0.0], nan_ok=True)]


def test_what_only_the_full_detail_shows_is_not_kept():
    made = filled(0, 10)
    assert "modes/opt_fraction/a" in made.rows[0]
    assert not [tag for tag in made.rows[0] if "order_z" in tag or "phase/mean" in tag]


def test_the_untrained_network_is_drawn_before_another_one_of_its_step():
    assert filled(0, 0, 5).places() == [-0.5, 0, 5]
    assert filled(0, 2, 5).places() == [0, 2, 5]
