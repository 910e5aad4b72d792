"""What a report looks like in a notebook: the same content as in a terminal."""

import re

import pytest

from made_reports import INF, NAN, Reader, basin, layer, report
from netdyn.report.text import COLUMNS

WHOLE = report(
    layer("encoder.fc1", dead=0.25),
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
    assert any("The most fragile weights are <i>:" in text for text in reader.texts)
    assert set(reader.tags) <= {"div", "p", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}


def test_a_notebook_loads_nothing_and_sets_no_colour_of_its_own():
    reader = Reader(WHOLE._repr_html_())
    assert {key for key, _ in reader.attributes} == {"style", "title"}
    styles = " ".join(value for key, value in reader.attributes if key == "style")
    assert "url" not in styles
    # Half-transparent grey lines are seen on light and dark; text and background are the notebook's.
    assert set(re.findall(r"(?<![-\w])(?:color|background): ([^;]+)", styles)) == {"inherit", "transparent"}
    assert set(re.findall(r"#[0-9a-f]+|rgba?\([^)]*\)", styles)) == {"rgba(128, 128, 128, 0.4)"}
