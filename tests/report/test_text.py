"""What a report looks like in a terminal."""

import re

import pytest

from made_reports import INF, NAN, basin, layer, lines, report
from netdyn import LayerReport
from netdyn.report.text import NAME_WIDTH, shortened

# The whole -----------------------------------------------------------------------------------------------------------


def test_printed_report_is_a_table_lines_and_sentences():
    made = report(
        layer("encoder.fc1", dead=0.25, tail=0.5),
        layer("fc2", opt=0.0625, gradient=-0.25, units=1024),
        sample=basin(),
        weight=basin(1.375, (1.25, INF), level=0.75),
        val_accuracy=0.75,
        functional_depth=1.0,
        batchnorm_gap=0.125,
        batchnorm_train_gap=0.03125,
    )
    assert str(made).splitlines() == [
        f"{made.verdict}",
        "probe: 200 samples, 5 classes, accuracy 0.875 (validation 0.750)",
        "layer        units    OPT    NPT   dead  gradient  linear tail",
        "encoder.fc1     40  0.500  0.500  0.250     1.500        0.500",
        "fc2           1024  0.062  0.938  0.000    -0.250        0.875",
        "phase: index -1.000, spread 1.750, mean 0.625 of the layers' gradients",
        "functional depth: 1 of 2 layers",
        "batch-norm gap: 0.125 on the validation probe, 0.031 on the training probe (accuracy with batch statistics "
        "minus accuracy with running statistics)",
        "sample basin: radius 0.5 at accuracy 0.5 (95 % interval 0.25 to 1; 12.5 % of the samples still correct at the "
        "highest noise level)",
        "weight basin: radius 1.38 at accuracy 0.5 (75 % interval 1.25 to beyond 10; 12.5 % of the rays still above it "
        "at the highest noise level)",
        *(f"- {sentence}" for sentence in made.findings()),
    ]
    assert len(made.findings()) == 7


def test_an_untrained_network_has_no_phase_and_no_depth():
    layers = layer(), layer("fc2", gradient=-0.25)
    assert any(line.startswith("phase: ") for line in lines(*layers))
    # Of five classes an accuracy of 0.4 is what guessing could give.
    untrained = lines(*layers, accuracy=0.4, functional_depth=NAN)
    assert not [line for line in untrained if re.search("phase|depth|order", line)]


def test_what_was_not_measured_has_no_line():
    assert lines() == ["probe: 200 samples, 5 classes, accuracy 0.875"]
    assert [line[:2] for line in lines(layer())[3:]] == ["- "]


def test_numbers_to_be_predicted_have_neither_classes_nor_accuracy():
    # With no classes there is no gradient, phase or tail.
    one = layer(gradient=NAN, tail=NAN)
    printed = lines(one, one, sample=basin(), accuracy=NAN, val_accuracy=1.0, num_classes=1)
    assert printed[:5] == [
        "probe: 200 samples",
        "layer  units    OPT    NPT   dead  gradient  linear tail",
        "fc1       40  0.500  0.500  0.000         -            -",
        "fc1       40  0.500  0.500  0.000         -            -",
        "sample basin: radius 0.5 at a share of right answers of 0.5 (95 % interval 0.25 to 1; 12.5 % of the samples "
        "still correct at the highest noise level)",
    ]
    assert "class" not in "\n".join(printed)


def test_without_classes_right_answers_are_counted():
    assert lines(num_classes=1) == ["probe: 200 samples, share of right answers 0.875"]


# The table -----------------------------------------------------------------------------------------------------------


def test_what_is_not_known_is_a_dash_and_zero_has_no_sign():
    assert lines(LayerReport("fc1", 40, 0))[2].split() == ["fc1", "40", "-", "-", "-", "-", "-"]
    assert lines(layer(gradient=-0.0004, opt=-0.0))[2].split()[2:6] == ["0.000", "1.000", "0.000", "0.000"]


@pytest.mark.parametrize("units", [1, 40, 10**12])
def test_a_hundred_layers_stand_in_aligned_columns_with_every_number_whole(units):
    names = [f"model.encoder.blocks.{i}.feed_forward.activation.linear" for i in range(100)]
    made = report(*(layer(name, gradient=i / 8 - 4, units=units) for i, name in enumerate(names)))
    table = str(made).splitlines()[2:103]
    assert len({len(line) for line in table}) == 1
    ends = [[found.end() for found in re.finditer(r"\S+", line)][1:] for line in table[1:]]
    assert all(row == ends[0] for row in ends)
    assert len({line.split()[0] for line in table[1:]}) == 100
    for i, line in enumerate(table[1:]):
        assert line.split()[1:] == [str(units), "0.500", "0.500", "0.000", f"{i / 8 - 4:.3f}", "0.875"]


def test_a_line_of_the_table_fits_a_terminal():
    assert len(lines(layer("x" * 200, units=100_000))[1]) <= 80


def test_long_names_are_cut_in_the_middle():
    (cut,) = shortened(["encoder.block.0.attention.output.dense"], 20)
    assert cut == "encoder.bl…put.dense"
    assert len(cut) == 20
    assert shortened(["a" * 20], 20) == ["a" * 20]
    assert shortened([], 20) == []
    assert lines(layer("b" * 40))[2].split()[0] == "b" * 14 + "…" + "b" * 13
    assert NAME_WIDTH == 28


@pytest.mark.parametrize("place", [0, 20, 39])
def test_cut_names_stay_apart(place):
    names = ["a" * place + end + "a" * (39 - place) for end in "bcd"]
    cut = shortened(names, 12)
    assert len(set(cut)) == 3
    assert max(map(len, cut)) == (12 if place in (0, 39) else 40)


# Basins --------------------------------------------------------------------------------------------------------------


def basin_line(*args, **changes):
    return lines(sample=basin(*args, **changes))[1]


def test_radius_zero_and_infinity_are_put_in_words():
    assert basin_line(0.0, (0.0, 0.0), clean=0.09, accuracy=0.75) == (
        "sample basin: radius 0 (accuracy is 0.09 without noise, not above 0.75)"
    )
    assert basin_line(INF, (2.0, INF), high=2.5, accuracy=0.75, censored=0.875) == (
        "sample basin: radius beyond 2.5, the highest noise tried, where accuracy is above 0.75 (95 % interval 2 to "
        "beyond 2.5; 87.5 % of the samples still correct at the highest noise level)"
    )


@pytest.mark.parametrize("unknown", [{"level": 0.0}, {"interval": (NAN, 1.0)}, {"interval": (0.5, NAN)}])
def test_an_interval_that_too_few_rays_give_is_not_shown(unknown):
    assert basin_line(**{"interval": (0.5, 0.5)} | unknown) == (
        "sample basin: radius 0.5 at accuracy 0.5 (no interval: too few rays; 12.5 % of the samples still "
        "correct at the highest noise level)"
    )


@pytest.mark.parametrize(("level", "shown"), [(0.95, "95 %"), (0.9375, "93.8 %"), (0.5, "50 %")])
def test_the_level_of_an_interval_is_shown(level, shown):
    assert f"({shown} interval 0.25 to 1;" in basin_line(level=level)
