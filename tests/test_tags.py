"""The table of tags against what a report really gives, and the rules that a tag has to keep."""

import dataclasses
import math
import re

import pytest
import torch
from torch import nn

from netdyn import diagnose
from netdyn.engine.config import MEASURES
from netdyn.tags import HISTOGRAMS, SCALARS, Tag, is_sent

TABLE = (*SCALARS, *HISTOGRAMS)
NAMES = [tag.name for tag in TABLE]
#: Tags that only the callback can give: they tell of its own work, and of earlier evaluations.
CALLBACKS_OWN = {"netdyn/seconds", "netdyn/overhead", "netdyn/skipped"}
CALLBACKS_OWN |= {
    f"basin/{space}/{tag}" for space in ("sample", "weight") for tag in ("change", "change_low", "change_high")
}


def pattern(tag: Tag) -> re.Pattern[str]:
    """The tag's name as a pattern; what varies is one piece without a slash."""
    varying = {"layer": r"[^/]+", "k": r"\d+", "tensor": r"[^/]+"}
    pieces = re.split(r"<(\w+)>", tag.name)
    return re.compile("".join(varying[p] if i % 2 else re.escape(p) for i, p in enumerate(pieces)))


def naming(name: str, table: tuple[Tag, ...]) -> list[Tag]:
    return [tag for tag in table if pattern(tag).fullmatch(name)]


@pytest.fixture(scope="module")
def report():
    """A nested network, trained a little, on a probe with a validation probe, everything switched on."""
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("encoder", nn.Sequential(nn.Linear(5, 30), nn.BatchNorm1d(30), nn.ReLU()))
    net.add_module("head", nn.Sequential(nn.Linear(30, 25), nn.Tanh(), nn.Linear(25, 5)))
    y = torch.arange(100) % 5
    x = torch.eye(5)[y] + 0.1 * torch.randn(100, 5)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return diagnose(
        net,
        x,
        y,
        val_inputs=x[:20],
        val_target=y[:20],
        measure=[*MEASURES, "companions"],
        weight_layers="each",
        weight_rays=2,
    )


def test_every_scalar_of_a_report_is_in_the_table_once(report):
    assert {name: len(naming(name, SCALARS)) for name in report.scalars()} == dict.fromkeys(report.scalars(), 1)


def test_every_histogram_of_a_report_is_in_the_table_once(report):
    assert {name: len(naming(name, HISTOGRAMS)) for name in report.histograms()} == dict.fromkeys(
        report.histograms(), 1
    )


def test_every_scalar_of_the_table_is_given(report):
    given = {tag.name for name in report.scalars() for tag in naming(name, SCALARS)}
    assert given | CALLBACKS_OWN == {tag.name for tag in SCALARS}


def test_every_histogram_of_the_table_is_given(report):
    assert {tag.name for name in report.histograms() for tag in naming(name, HISTOGRAMS)} == {
        tag.name for tag in HISTOGRAMS
    }


def test_scalars_are_finite_numbers(report):
    values = report.scalars().values()
    assert {type(value) for value in values} == {float}
    assert all(math.isfinite(value) for value in values)


def test_histograms_are_finite_float32(report):
    assert {values.dtype for values in report.histograms().values()} == {torch.float32}
    assert all(len(values) and values.isfinite().all() for values in report.histograms().values())


@pytest.mark.parametrize("tag", TABLE, ids=NAMES)
def test_a_tag_has_a_unit_and_a_meaning(tag):
    assert tag.unit.strip()
    assert tag.meaning.strip()


def test_no_tag_stands_twice():
    assert len(set(NAMES)) == len(NAMES)


def both_leaf_and_folder(names):
    """Names that another name goes on from, as folder/leaf."""
    return {a for a in names for b in names if b.startswith(f"{a}/")}


def test_no_tag_of_the_table_is_both_leaf_and_folder():
    assert both_leaf_and_folder(NAMES) == set()


def test_no_tag_of_a_report_is_both_leaf_and_folder(report):
    assert both_leaf_and_folder({*report.scalars(), *report.histograms()}) == set()


def test_the_rule_of_leaf_and_folder_can_fail():
    assert both_leaf_and_folder(["a/b", "a/b/c", "a/bc"]) == {"a/b"}


@pytest.mark.parametrize("name", NAMES)
def test_tags_keep_to_characters_that_every_logger_takes(name):
    assert re.fullmatch(r"[a-z]+(/[a-z_]+)+(/<(layer|k|tensor)>)?", name)


# How many are sent ----------------------------------------------------------------------------------------------------

SUMMARY = {
    *("probe/accuracy", "probe/val_accuracy", "modes/opt_mean", "modes/dead_max", "phase/index"),
    *(f"basin/{space}/{end}" for space in ("sample", "weight") for end in ("radius", "low", "high")),
    *("linear/functional_depth", "batchnorm/gap", "coverage/own", "coverage/other"),
    *("netdyn/seconds", "netdyn/overhead", "netdyn/skipped"),
}
LAYERS = {"modes/opt_fraction", "modes/rpd_gradient", "modes/dead_fraction", "linear/tail_accuracy"}


def test_the_summary_describes_the_network():
    assert {tag.name for tag in SCALARS if tag.detail == "summary"} == SUMMARY
    # The ends of an interval belong to their radius.
    assert len([name for name in SUMMARY if not name.endswith(("low", "high"))]) == 14


def test_the_default_adds_four_per_layer():
    assert {tag.name for tag in SCALARS if tag.detail == "layers"} == {f"{name}/<layer>" for name in LAYERS}


def test_a_report_gives_the_scalars_of_a_detail(report):
    whole = report.scalars()
    assert report.scalars("full") == whole
    own = {tag: value for tag, value in whole.items() if tag in SUMMARY}
    assert report.scalars("summary") == own
    names = [layer.name for layer in report.layers]
    more = {f"{kind}/{name}" for kind in LAYERS for name in names}
    assert report.scalars("layers") == own | {tag: value for tag, value in whole.items() if tag in more}
    assert len(report.scalars("layers")) <= len(SUMMARY) + 4 * len(names)


def test_another_detail_is_refused(report):
    with pytest.raises(ValueError, match=r"^`detail` must be one of 'summary', 'layers', 'full', got 'some'\.$"):
        report.scalars("some")


@pytest.mark.parametrize(
    ("tag", "word"),
    [
        ("probe/accuracy", "summary"),
        ("modes/opt_fraction/probe/accuracy", "layers"),
        ("modes/opt_fraction/a<b>", "layers"),
        ("modes/order_z/fc", "full"),
        ("modes/opt_mean/fc", "full"),
        ("companions/sharpness", "full"),
    ],
)
def test_a_tag_is_sent_from_its_word_on(tag, word):
    words = ["summary", "layers", "full"]
    assert [is_sent(tag, each) for each in words] == [words.index(each) >= words.index(word) for each in words]


def test_a_class_radius_is_logged_for_so_many_classes(report):
    many = dataclasses.replace(report, max_classes=2)
    assert [tag for tag in many.scalars() if "class_radius" in tag] == [
        f"basin/sample/class_radius/{k}" for k in (0, 1)
    ]
