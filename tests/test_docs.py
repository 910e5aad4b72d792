"""The documentation: its code runs, and what is made from the sources leaves nothing out."""

import ast
import doctest
import json
import re
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="the documentation is built with the pinned versions alone")

import hooks
import messages
import roles
import runs as pictured

import netdyn
from netdyn import tags

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

# A comment that readers do not see gives a block what it needs; one that says "fragment" keeps it from being run.
BLOCK = re.compile(
    r"(?:<!-- given\n(?P<given>.*?)\n-->|(?P<fragment><!-- fragment -->\n+)?```python\n(?P<code>.*?)```)", re.S
)


def blocks(page: Path) -> list[tuple[str, bool, int]]:
    """The Python of a page, whether it is to be run, and its line."""
    text = page.read_text(encoding="utf-8")
    return [
        (found["given"] or found["code"], found["fragment"] is None, text[: found.start()].count("\n") + 2)
        for found in BLOCK.finditer(text)
    ]


WITH_CODE = [page for page in PAGES if blocks(page)]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for code, runs, line in blocks(page):
        if code.startswith(">>>"):
            session = doctest.DocTestParser().get_doctest(code, names, page.name, str(page), line)
            failed = doctest.DocTestRunner().run(session, clear_globs=False).failed
            assert not failed, f"{page.name}, line {line}"
            continue
        tree = compile("\n" * (line - 1) + code, str(page), "exec", ast.PyCF_ONLY_AST)
        if runs:
            exec(compile(tree, str(page), "exec"), names)


def test_code_is_found_in_the_pages_where_it_must_be():
    assert {"README.md", "index.md", "faq.md"} <= {page.name for page in WITH_CODE}
    run = [code for page in WITH_CODE for code, runs, _ in blocks(page) if runs]
    assert any("DynamicsMonitor()" in code for code in run)
    assert any("diagnose(" in code for code in run)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_into_the_repository_lead_somewhere(name):
    links = re.findall(r"\]\((?!https?://)([^)#]+)", (ROOT / name).read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_a_block_that_fails_is_noticed(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("text\n\n<!-- given\nx = 1\n-->\n\n```python\nassert x == 2\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError):
        test_the_code_of_a_page_runs(page, tmp_path, monkeypatch)


def test_every_public_name_stands_on_a_page_of_the_reference():
    shown = {
        line[4:].strip() for p in PAGES for line in p.read_text(encoding="utf-8").splitlines() if line[:4] == "::: "
    }
    public = {f"netdyn.{name}" for name in netdyn.__all__ if name not in ("functional", "tags")}
    public |= {f"netdyn.functional.{name}" for name in netdyn.functional.__all__}
    public.remove("netdyn.BasinResult")  # under its other address
    assert public - shown == set()


def page(name):
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_every_tag_stands_on_the_page_of_tags_with_its_unit_and_meaning():
    made = hooks.filled(page("tags.md"))
    for tag in (*tags.SCALARS, *tags.HISTOGRAMS):
        (row,) = [line for line in made.splitlines() if line.startswith(f"| `{tag.name}` | {tag.meaning} |")]
        assert tag.unit in row


def test_a_tag_that_no_table_shows_stops_the_building(monkeypatch):
    monkeypatch.setattr(tags, "SCALARS", (*tags.SCALARS, tags.Tag("new/tag", "share", "something")))
    with pytest.raises(ValueError, match="new/tag is shown 0 times"):
        hooks.filled(page("tags.md"))


def test_every_warning_and_notice_is_explained_and_every_error_listed():
    made = hooks.filled(page("messages.md"))
    for message in messages.messages():
        quoted = f"> {message.text}" if message.kind in ("warning", "notice") else f"| `{message.kind}` |"
        assert quoted in made


def test_a_warning_that_no_page_explains_stops_the_building(monkeypatch):
    new = [*messages.messages(), messages.Message("warning", "Something new.", "rays")]
    monkeypatch.setattr(hooks, "messages", lambda: new)
    with pytest.raises(ValueError, match=r"explains nothing of \['Something new\.'\]"):
        hooks.filled(page("messages.md"))


def test_words_that_fit_no_message_stop_the_building():
    with pytest.raises(ValueError, match="0 warnings or notices hold the words 'gone with the wind'"):
        hooks.filled("<!-- says gone with the wind -->")


SOURCE = """
def f(x, error):
    if x:
        raise ValueError(f"`x` must be small, got {x!r}. " "Take another.")
    checks.warn("One " + f"of {x}.")
    rank_zero_info("Read.")
    self.inform(f"Seen {x}.")
    self.say_once(f"Said of {x}.", key="key")
    warnings.warn(x)
    try:
        raise TypeError("inner")
    except TypeError:
        raise
    raise error
"""


def test_messages_are_read_from_a_source(tmp_path):
    (tmp_path / "room.py").write_text(SOURCE, encoding="utf-8")
    assert [(m.kind, m.text, m.room) for m in messages.messages(tmp_path)] == [
        ("ValueError", "`x` must be small, got …. Take another.", "room"),
        ("warning", "One of ….", "room"),
        ("notice", "Read.", "room"),
        ("notice", "Seen ….", "room"),
        ("warning", "Said of ….", "room"),
    ]


def test_no_call_that_warns_escapes_the_reading():
    """Counted by plain search: each line that warns is one message of that room, or hands on a text made elsewhere."""
    handed_on = {"_utils.checks": 1, "monitor": 1}
    for path in messages.SOURCES.rglob("*.py"):
        calls = len(
            re.findall(
                r"\b(?:warn|rank_zero_info|say_once|inform)\((?!text: str|self)", path.read_text(encoding="utf-8")
            )
        )
        found = sum(m.kind in ("warning", "notice") for m in messages.messages() if m.room == messages.room(path))
        assert found == calls - handed_on.get(messages.room(path), 0), path


@pytest.mark.parametrize(
    ("text", "linked"),
    [
        (
            "see :func:`netdyn.diagnose`.",
            'see <autoref identifier="netdyn.diagnose" optional><code>netdyn.diagnose</code></autoref>.',
        ),
        (
            "a :class:`~torchmetrics.Metric`",
            'a <autoref identifier="torchmetrics.Metric" optional><code>Metric</code></autoref>',
        ),
        (
            ":meth:`reset`",
            '<autoref identifier="netdyn.room.Thing.reset" optional><autoref identifier="netdyn.room.reset" optional>'
            "<code>reset</code></autoref></autoref>",
        ),
        ("``code`` and :1", "``code`` and :1"),
    ],
)
def test_roles_in_docstrings_become_links(text, linked):
    assert roles.linked(text, "netdyn.room.Thing") == linked


@pytest.mark.parametrize(
    ("html", "loads"),
    [
        ('<script src="https://cdn.example/x.js">', True),
        ('<img alt="" src="//cdn.example/x.png">', True),
        ('<link rel="stylesheet" href="https://fonts.example/css">', True),
        ('<link href="https://fonts.example/css" rel="preconnect">', True),
        ('<script src="assets/x.js"></script><a href="https://example.org">there</a>', False),
        ('<link rel="canonical" href="https://example.org/">', False),
    ],
)
def test_what_a_page_would_load_from_elsewhere_is_seen(html, loads):
    assert (hooks.FETCHED.search(html) is not None) == loads


def test_a_picture_stands_beside_each_number():
    sections = re.split(r"^## ", page("reading.md"), flags=re.M)[1:]
    assert len(sections) >= 14
    for section in sections:
        (picture,) = re.findall(r"!\[.+\]\((images/reading_\w+\.png)\)", section)
        assert (ROOT / "docs" / picture).is_file()
        assert "<figcaption>" in section


def test_runs_that_go_wrong_differ_from_the_healthy_one_in_one_thing():
    healthy = vars(pictured.RUNS["healthy"])
    for name, thing in {"overfitted": "wrong", "dead": "rate"}.items():
        other = vars(pictured.RUNS[name])
        assert {key for key in healthy if healthy[key] != other[key]} == {"title", thing}
        assert f"images/run_{name}.png" in page("runs.md")
    described = re.split(r"^## ", page("runs.md"), flags=re.M)[1:5]
    assert all("**What to do:**" in section for section in described)


@pytest.mark.parametrize("name", ["README.md", "docs/index.md"])
def test_the_first_screen_says_what_why_how_and_what_it_costs(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    parts = ["memorising?", "dead?", "survives noise?", "pip install", "DynamicsMonitor()", "**Cost**", "**Guarantee**"]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert "images/overview.png" in text
    assert "> overfitting: training accuracy" in text


def test_the_first_screens_give_the_verdicts_rate_with_its_limit_and_what_accuracy_alone_reaches():
    told = json.loads((ROOT / "docs/evidence/numbers.json").read_text(encoding="utf-8"))
    alone = f"{told['balanced: training and validation accuracy alone']:.3f}".removeprefix("0")
    rate = f"{told['balanced_accuracy']:.3f}".removeprefix("0")
    assert told["false_alarms"] == 0
    for name, sentence in {
        "README.md": f"with training and validation accuracy alone it is {alone}.",
        "docs/index.md": f"training and validation accuracy alone reach {alone}.",
    }.items():
        text = " ".join((ROOT / name).read_text(encoding="utf-8").split())
        parts = [rate, f"{told['judged']} labelled trainings", "small image networks", sentence]
        parts += [f"alarm on {told['healthy']} healthy ones", "Other tasks have not been measured"]
        assert [part for part in parts if part not in text] == [], name
