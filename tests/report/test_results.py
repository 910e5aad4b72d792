"""What a report looks like in a terminal and in a notebook: the same content in both."""

import dataclasses
import math
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
import torch
from torch import nn

from netdyn import Report, diagnose
from netdyn.basins.curve import falling_curve
from netdyn.basins.result import BasinResult
from netdyn.engine.layers import LayerReport
from netdyn.report.text import COLUMNS, NAME_WIDTH, shortened

NAN, INF = math.nan, math.inf


def layer(name="fc1", opt=0.5, gradient=1.5, tail=0.875, constant=0.0, units=40):
    return LayerReport(
        name,
        units,
        units,
        opt_fraction=opt,
        npt_fraction=1 - opt,
        constant_fraction=constant,
        rpd_gradient=gradient,
        transfer_order=0.7,
        affine_defect=0.0,
        tail_accuracy=tail,
    )


def basin(radius=0.5, interval=(0.25, 1.0), **changes):
    plain = dict.fromkeys((field.name for field in dataclasses.fields(BasinResult)), 0.5)
    plain |= {"radius": radius, "interval": interval, "level": 0.95, "clean": 0.875, "censored": 0.125, "high": 10.0}
    plain |= {"per_class": torch.ones(5), "noise_classes": None, "per_sample": None, "per_layer": None}
    plain |= {"radii": torch.tensor([radius]), "curve": falling_curve(0.9, [1.0], [0.5])}
    return BasinResult(**plain | changes)


def report(*layers, sample=None, weight=None, **changes):
    plain = {"accuracy": 0.875, "val_accuracy": None, "samples": 200, "num_classes": 5, "alpha": 0.05}
    return Report(layers=layers, sample_basin=sample, weight_basin=weight, **plain | changes)


def lines(*layers, **changes):
    return str(report(*layers, **changes)).splitlines()


# The whole -----------------------------------------------------------------------------------------------------------


def test_printed_report_is_a_table_lines_and_sentences():
    made = report(
        layer("encoder.fc1", constant=0.25),
        layer("fc2", opt=0.0625, gradient=-0.25, units=1024),
        sample=basin(),
        weight=basin(1.375, (1.25, INF), level=0.75),
        val_accuracy=0.75,
        functional_depth=1.0,
        batchnorm_gap=0.0625,
    )
    assert str(made).splitlines() == [
        "probe: 200 samples, 5 classes, accuracy 0.875 (validation 0.750)",
        "layer        units    OPT    NPT   dead  gradient  linear tail",
        "encoder.fc1     40  0.500  0.500  0.250     1.500        0.875",
        "fc2           1024  0.062  0.938  0.000    -0.250        0.875",
        "phase: index -1.000, spread 1.750, mean 0.625 of the layers' gradients",
        "functional depth: 1 of 2 layers",
        "batch-norm gap: 0.062 (accuracy with the statistics of a batch minus accuracy with its own)",
        "sample basin: radius 0.5 at accuracy 0.5 (95% interval 0.25 to 1; 12.5% of the rays never lost)",
        "weight basin: radius 1.38 at accuracy 0.5 (75% interval 1.25 to beyond 10; 12.5% of the rays never lost)",
        *(f"- {sentence}" for sentence in made.findings()),
    ]
    assert len(made.findings()) == 7


def test_what_was_not_measured_has_no_line():
    assert lines() == ["probe: 200 samples, 5 classes, accuracy 0.875"]
    assert [line[:2] for line in lines(layer())[3:]] == ["- ", "- "]


def test_numbers_to_be_predicted_have_neither_classes_nor_accuracy():
    # With no classes there is no gradient, phase or tail.
    one = layer(gradient=NAN, tail=NAN)
    printed = lines(one, one, sample=basin(), accuracy=NAN, val_accuracy=1.0, num_classes=1)
    assert printed[:5] == [
        "probe: 200 samples",
        "layer  units    OPT    NPT   dead  gradient  linear tail",
        "fc1       40  0.500  0.500  0.000         -            -",
        "fc1       40  0.500  0.500  0.000         -            -",
        "sample basin: radius 0.5 at share of right answers 0.5 (95% interval 0.25 to 1; 12.5% of the rays never lost)",
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
    table = str(made).splitlines()[1:102]
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
        "sample basin: radius beyond 2.5, the highest noise tried, where accuracy is above 0.75 (95% interval 2 to "
        "beyond 2.5; 87.5% of the rays never lost)"
    )


@pytest.mark.parametrize("unknown", [{"level": 0.0}, {"interval": (NAN, 1.0)}, {"interval": (0.5, NAN)}])
def test_an_interval_that_too_few_rays_give_is_not_shown(unknown):
    assert basin_line(**{"interval": (0.5, 0.5)} | unknown) == (
        "sample basin: radius 0.5 at accuracy 0.5 (no interval: too few rays; 12.5% of the rays never lost)"
    )


@pytest.mark.parametrize(("level", "shown"), [(0.95, "95%"), (0.9375, "93.8%"), (0.5, "50%")])
def test_the_level_of_an_interval_is_shown(level, shown):
    assert f"({shown} interval 0.25 to 1;" in basin_line(level=level)


# Notebooks -----------------------------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """The tags in use, whether each is closed, and the text between them."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


WHOLE = report(
    layer("encoder.fc1", constant=0.25),
    layer("fc2", opt=0.0625, gradient=-0.25, tail=NAN),
    sample=basin(),
    weight=basin(INF, (1.25, INF)),
    batchnorm_gap=0.0625,
)


@pytest.mark.parametrize(
    "made",
    [
        WHOLE,
        report(),
        report(layer(tail=NAN), num_classes=1, accuracy=NAN),
        report(*(layer(f"fc{i}") for i in range(100)), sample=basin(0.0)),
    ],
    ids=["whole", "nothing", "numbers", "deep"],
)
def test_a_notebook_shows_what_a_terminal_shows(made):
    shown = [text for text in Reader(made._repr_html_()).texts if text.strip()]
    heads = {head for head, _ in COLUMNS}
    # Word by word: cells are words of the table's lines, sentences follow a dash.
    printed = [line.removeprefix("- ") for line in str(made).splitlines()]
    assert " ".join(shown).split() == " ".join(printed).split()
    assert (heads <= set(shown)) == bool(made.layers)


def test_a_notebook_has_names_in_full_and_everything_escaped():
    name = 'blocks["<b>&amp;"].' + "x" * 60
    page = report(layer(name), weight=basin(per_layer={"<i>": 0.1, "b": 1.0}))._repr_html_()
    reader = Reader(page)
    assert name in reader.texts
    assert any("the weights <i>:" in text for text in reader.texts)
    assert set(reader.tags) <= {"div", "p", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}


def test_a_notebook_loads_nothing_and_sets_no_colour_of_its_own():
    reader = Reader(WHOLE._repr_html_())
    assert {key for key, _ in reader.attributes} == {"style", "title"}
    styles = " ".join(value for key, value in reader.attributes if key == "style")
    assert "url" not in styles
    # Half-transparent grey lines are seen on light and dark; text and background are the notebook's.
    assert set(re.findall(r"(?<![-\w])(?:color|background): ([^;]+)", styles)) == {"inherit", "transparent"}
    assert set(re.findall(r"#[0-9a-f]+|rgba?\([^)]*\)", styles)) == {"rgba(128, 128, 128, 0.4)"}


# Real networks -------------------------------------------------------------------------------------------------------


def network(depth, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = [8, *[40] * depth]
        hidden = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(*hidden, nn.Linear(40, 5))


def clouds():
    generator = torch.Generator().manual_seed(1)
    target = torch.arange(200) % 5
    x = 1.5 * torch.randn(5, 8, generator=generator)[target] + 0.5 * torch.randn(200, 8, generator=generator)
    return x, target


def train(net, x, target, steps=200):
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), target).backward()
        optimizer.step()
    return net


@pytest.mark.filterwarnings("ignore:`accuracy` is:UserWarning")
@pytest.mark.parametrize("depth", [2, 5, 9])
@pytest.mark.parametrize("seed", range(5))
def test_untrained_networks_read_as_untrained(depth, seed):
    x, target = clouds()
    net = network(depth, seed)
    # Shifting all labels by 0 to 4 gives five accuracies that sum to 1: the least is no more than guessing gives.
    right = [float((net(x).argmax(1) == (target + shift) % 5).float().mean()) for shift in range(5)]
    shifted = (target + right.index(min(right))) % 5
    told = diagnose(net, x, shifted, measure=["modes", "linear", "sample_basin"])
    assert told.accuracy <= 0.2
    sentences = told.findings()
    assert sentences[0].startswith("The network is untrained")
    assert not [s for s in sentences if "linearly" in s or "phase" in s]


def test_a_trained_network_reads_as_trained():
    x, target = clouds()
    made = diagnose(train(network(3), x, target), x, target, weight_layers="each")
    assert made.accuracy > 0.95
    words = str(made)
    assert "untrained" not in words
    assert "Order is preserved most in layer" in words
    assert "act linearly" in words or "acts linearly" in words
    assert re.search(r"^sample basin: radius \d\S* at accuracy 0.5 \(95% interval", words, re.MULTILINE)
    assert re.search(r"^weight basin: radius \d\S* at accuracy 0.5 \(95% interval", words, re.MULTILINE)
    Reader(made._repr_html_())
