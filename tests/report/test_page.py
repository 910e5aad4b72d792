"""A report as one HTML file: well formed, complete, escaped, and loading nothing from elsewhere."""

import re
from dataclasses import replace
from html import escape

import pytest
from matplotlib.figure import Figure

from made_reports import INF, NAN, Reader, basin, layer, report
from netdyn import LayerReport
from netdyn.basins.curve import falling_curve
from netdyn.report import page as pages
from netdyn.report.findings import findings, with_rules
from netdyn.report.text import COLUMNS
from netdyn.report.trend import Moment
from netdyn.tags import SCALARS

NASTY = ["<script>alert(1)</script>", "a&amp;b", "\"quoted\" 'x'", "x|y", "`code`", "</main>", "$x^2$"]
CURVE = falling_curve(0.9, [0.5, 1.0], [0.8, 0.5])
SAMPLE = basin(curve=CURVE)
TREND = tuple(Moment(step, step / 10, NAN, INF if step == 3 else step / 5) for step in range(5))
WHOLE = report(
    layer("fc1", dead=0.25),
    layer("fc2", opt=0.0625, gradient=-0.25, tail=NAN),
    sample=SAMPLE,
    weight=basin(INF, (1.25, INF)),
    val_accuracy=0.5,
    batchnorm_gap=0.0625,
    step=1200,
    trend=TREND,
    notes=("labels are a column",),
    measured={"netdyn": "1.2.3", "seed": "7", "cadence": "at the end of every epoch"},
)


def written(one, tmp_path):
    one.to_html(tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def words(text):
    return " ".join(Reader(text).texts)


@pytest.mark.parametrize(
    "one",
    [
        WHOLE,
        report(),
        report(layer(tail=NAN), num_classes=1, accuracy=NAN),
        report(*map(layer, NASTY), sample=basin(0.0, curve=CURVE)),
    ],
    ids=["whole", "nothing", "numbers", "nasty"],
)
def test_the_page_is_well_formed_and_loads_nothing(one, tmp_path):
    text = written(one, tmp_path)
    reader = Reader(text)
    assert text.startswith("<!doctype html>\n<html lang=")
    assert reader.tags.count("h1") == 1
    assert {"script", "link", "iframe", "object", "img", "base", "form"}.isdisjoint(reader.tags)
    for name, value in reader.attributes:
        assert not name.startswith("on")
        if name.split(":")[-1] in ("src", "href", "data"):
            assert value.startswith(("#", "data:image/png;base64,")), value
        assert "url(" not in value or re.fullmatch(r".*url\(#[\w-]+\).*", value), value
    policy = [value for name, value in reader.attributes if name == "content" and "default-src" in value]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    assert "@import" not in text


def test_the_verdict_comes_first_and_everything_of_the_report_follows(tmp_path):
    text = words(written(WHOLE, tmp_path))
    verdict = WHOLE.verdict
    body = text[text.index("netdyn report, step 1,200") :]
    assert body.split("What stands out")[0].count(verdict.level)
    order = [verdict.reason, "What stands out", "The run", "Layers", "In numbers", "Figures", "Glossary", "How it was"]
    places = [body.index(part) for part in order]
    assert places == sorted(places)
    for sentence, rule in with_rules(WHOLE):
        assert sentence in body
        assert f"Rule: {rule}" in body
    for part in ("1.2.3", "at the end of every epoch", "labels are a column", "modes/opt_fraction/<layer>", "fc2"):
        assert part in body


def test_every_finding_has_a_rule():
    assert [sentence for sentence, _ in with_rules(WHOLE)] == findings(WHOLE)
    assert findings(WHOLE)
    assert all(rule.endswith(".") for _, rule in with_rules(WHOLE))


@pytest.mark.parametrize("name", NASTY)
def test_names_from_the_model_are_text_and_never_markup(name, tmp_path):
    weight = basin(per_layer={name: 0.1, "b": 1.0})
    nasty = report(layer(name, dead=0.5), weight=weight, notes=(name,), measured={name: name})
    reader = Reader(written(nasty, tmp_path))
    assert reader.tags.count("main") == 1
    assert "script" not in reader.tags
    assert name in reader.texts
    assert any(f"most fragile weights are {name}:" in text for text in reader.texts)


def test_shares_have_a_bar_and_missing_numbers_none(tmp_path):
    reader = Reader(written(WHOLE, tmp_path))
    bars = [value for name, value in reader.attributes if name == "style" and value.startswith("--share")]
    # OPT, NPT, dead and tail of fc1, and the first three of fc2, whose tail is unknown.
    assert bars == [f"--share: {share}%" for share in (50.0, 50.0, 25.0, 87.5, 6.2, 93.8, 0.0)]
    assert {head for head, _ in COLUMNS} <= set(reader.texts)


def test_the_run_is_drawn_where_it_is_known(tmp_path):
    reader = Reader(written(WHOLE, tmp_path))
    labels = [value for name, value in reader.attributes if name == "aria-label"]
    meanings = {tag.name: tag.meaning for tag in SCALARS}
    assert labels == [meanings[tag] for tag in pages.KEPT]
    assert "The run" not in words(written(replace(WHOLE, trend=()), tmp_path))


def test_a_run_that_is_known_better_has_more_lines_and_one_for_each_layer():
    curves = {
        "modes/dead_max": [0.0, 0.5],
        "modes/opt_fraction/fc1": [0.1, NAN],
        "probe/accuracy": [NAN, NAN],
        "x": [1.0],
    }
    text = pages.page(report(layer("fc1"), layer("a&b")), {}, curves)
    labels = [value for name, value in Reader(text).attributes if name == "aria-label"]
    assert labels == ["largest dead_fraction of the layers", "OPT of fc1", "OPT of a&b"]
    assert "OPT over the run" in words(text)


def test_the_glossary_explains_what_the_report_has_and_nothing_else():
    listed = pages.page(report(layer()), {}, {})
    terms = [tag.name for tag in SCALARS if f"<dt>{tag.name.replace('<', '&lt;').replace('>', '&gt;')}</dt>" in listed]
    assert "modes/opt_fraction/<layer>" in terms
    assert "probe/accuracy" in terms
    assert not [term for term in terms if term.startswith(("basin/", "coverage/", "netdyn/"))]


def test_figures_are_inside_with_names_of_their_own_and_captions():
    def drawn(text):
        figure = Figure(figsize=(2, 2))
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], label="<b>&")
        axes.imshow([[0.0, 1.0]])
        axes.set_title(text)
        return figure

    figures = {"a/modes/rpd": drawn("<i>one</i>"), "0_netdyn/overview": drawn("two"), "modes/rpd": drawn("x")}
    text = pages.page(report(), figures, {})
    reader = Reader(text)
    assert reader.tags.count("figure") == 3
    assert "i" not in reader.tags
    assert "<i>one</i>" in words(text)
    overview = text.index("0_netdyn/overview")
    assert text.index("</header>") < overview < text.index("<h2>")
    names = [value for name, value in reader.attributes if name == "id"]
    assert len(names) == len(set(names))
    used = {value[1:] for name, value in reader.attributes if name == "xlink:href" and value[0] == "#"}
    used |= set(re.findall(r"url\(#([\w-]+)\)", text))
    assert used
    assert used <= set(names)
    assert any(value.startswith("data:image/png") for name, value in reader.attributes if name == "xlink:href")
    assert "modes/rpd: rank probability distribution, one curve per layer" in words(text)
    assert "metadata" not in reader.tags


def test_without_matplotlib_the_page_has_no_figures(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    one = replace(WHOLE, layers=(replace(WHOLE.layers[0], tail_accuracy=0.5),))
    text = written(one, tmp_path)
    assert "figure" not in Reader(text).tags
    assert one.verdict.reason in words(text)


def test_a_rule_is_written_once_below_its_sentences():
    both = report(layer("a", dead=0.5), layer("b", dead=0.75))
    text = pages.page(both, {}, {})
    said = [(sentence, rule) for sentence, rule in with_rules(both) if "are dead" in sentence]
    assert len(said) == 2
    (rule,) = {rule for _, rule in said}
    assert text.count(f"Rule: {escape(rule)}") == 1
    assert "".join(f"<p>{sentence}</p>" for sentence, _ in said) + f"<small>Rule: {escape(rule)}" in text


def test_figures_stand_in_two_columns_on_paper_and_none_is_higher_than_a_page():
    paper = pages.STYLE[pages.STYLE.index("@media print") :]
    assert ".figures { grid-template-columns: 1fr 1fr; }" in paper
    assert "figure svg { max-height: 21cm; }" in paper


def test_light_dark_and_paper_have_their_colours():
    used = set(re.findall(r"var\((--\w+)\)", pages.STYLE)) - {"--share"}
    for block in (r":root \{(.*?)\}\n", r"dark\) \{ :root \{(.*?)\}", r"@media print \{ :root \{(.*?)\}"):
        set_there = set(re.findall(r"(--\w+):", re.search(block, pages.STYLE, re.S)[1]))
        assert set_there == used, block


def test_layers_of_odd_numbers_are_written(tmp_path):
    odd = LayerReport("fc", 3, 3, opt_fraction=-0.0, rpd_gradient=INF, dead_fraction=1.0)
    assert "-0.000" not in words(written(report(odd), tmp_path))
