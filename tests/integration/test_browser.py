"""What a person sees in a real browser: TensorBoard over a run of the quickstart, its report, pages of the docs.

Debian's Chromium and its driver are needed (packages chromium and chromium-driver). Where they are missing these tests
are skipped, unless NETDYN_BROWSER=required is set, as in .ci/run. NETDYN_SCREENSHOTS=docs/images makes the picture of
the documentation, from a longer run.
"""

from __future__ import annotations

import importlib.util
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from integration.browser import CHROMIUM, DRIVER, Browser, tensorboard

pytestmark = [pytest.mark.browser, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
KEPT = os.environ.get("NETDYN_SCREENSHOTS", "")
EPOCHS = 100 if KEPT else 3
RUN = "quickstart/version_0"

CURVES = [
    "modes/opt_fraction/hidden.2.1",
    "modes/rpd_gradient/hidden.0.1",
    "basin/sample/radius",
    "basin/weight/radius",
    "coverage/own",
    "phase/index",
    "modes/dead_max",
    "linear/tail_accuracy/hidden.0.1",
    "batchnorm/gap",
    "probe/accuracy",
    "netdyn/overhead",
]
HISTOGRAMS = [
    *(f"modes/{name}/hidden.{layer}.1" for name in ("order_index", "alignment") for layer in range(3)),
    "basin/sample/radii",
    "basin/weight/radii",
]
PICTURES = [
    "0_netdyn/overview",
    "modes/rpd",
    "modes/map",
    "modes/gradient_map",
    "basin/curves",
    "linear/tail",
    "linear/map",
    "wpa/characteristic_maps",
]
# What the custom scalars must show, by the kind of chart: a margin is value, lower end, upper end.
MARGINS = [[f"basin/{space}/{end}" for end in ("radius", "low", "high")] for space in ("sample", "weight")]
MARGINS += [["linear/functional_depth"] * 3]  # a whole number, which no line may smooth
LINES = ["phase/index", "netdyn/overhead", "probe/val_accuracy"]
LINES += [f"{kind}/hidden.2.1" for kind in ("modes/opt_fraction", "modes/rpd_gradient", "modes/dead_fraction")]
#: Windows in which the overview has to be legible.
WINDOWS = [(1600, 1200), (1280, 800)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The quickstart's logs, and what it has printed."""
    folder = tmp_path_factory.mktemp("logs")
    command = [sys.executable, str(ROOT / "examples" / "quickstart.py"), "--epochs", str(EPOCHS), "--logs", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, check=True, capture_output=True, encoding="utf-8", env=environment)
    return folder, done.stdout


@pytest.fixture(scope="module")
def logs(run: tuple[Path, str]) -> Path:
    return run[0]


@pytest.fixture(scope="module")
def events(logs: Path) -> EventAccumulator:
    found = EventAccumulator(str(logs / RUN), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0})
    found.Reload()
    return found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    missing = [name for name, path in (("chromium", CHROMIUM), ("chromedriver", DRIVER)) if path is None]
    missing += [] if importlib.util.find_spec("selenium") else ["selenium"]
    if missing:
        why = f"no {' and no '.join(missing)}"
        pytest.fail(why) if os.environ.get("NETDYN_BROWSER") == "required" else pytest.skip(why)
    found = Browser(tmp_path_factory.mktemp("profile"), size=(1500, 2600))
    yield found
    found.close()


@pytest.fixture(scope="module")
def address(browser: Browser, logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with tensorboard(logs, tmp_path_factory.mktemp("tensorboard") / "journal") as found:
        yield found


@pytest.fixture(scope="module")
def layout(events: EventAccumulator) -> Any:
    """The charts of the custom scalars as they stand in the log: [(title, margins or lines, tags), …]."""
    (event,) = events.Tensors("custom_scalars__config__")
    charts = []
    for category in layout_pb2.Layout.FromString(event.tensor_proto.string_val[0]).category:
        for chart in category.chart:
            margins = [[s.value, s.lower, s.upper] for s in chart.margin.series]
            charts.append((chart.title, margins, list(chart.multiline.tag)))
    return charts


@pytest.mark.parametrize("tag", CURVES)
def test_time_series_show_the_last_value_of_a_curve(address, browser, events, tag):
    last = events.Scalars(tag)[-1]
    if browser.tab != "timeseries":
        browser.open(address, "timeseries", tagFilter=f"^({'|'.join(CURVES)})$", smoothing="0")

    def row(card: dict[str, Any]) -> list[str]:
        """The value and the step that stand after the run's name."""
        words = card["words"]
        return words[words.index(RUN) + 1 :][:2] if RUN in words else []

    value, step = row(browser.card(tag, "canvases", lambda card: row(card)[1:] == [f"{last.step:,}"]))
    # Four digits are shown, or four decimals, and a minus that is no hyphen.
    assert float(value.replace("−", "-")) == pytest.approx(last.value, rel=1e-3, abs=6e-5)
    assert int(step.replace(",", "")) == last.step


def test_the_page_that_the_quickstart_names_shows_the_curves_to_begin_with(address, browser, run):
    (link,) = re.findall(r"http://localhost:6006/(\S+)", run[1])
    browser.visit(address + link, "timeseries")
    first = [f"modes/opt_fraction/hidden.{layer}.1" for layer in range(3)]
    first += ["basin/sample/radius", "basin/weight/radius", "netdyn/overhead", "probe/accuracy", "probe/val_accuracy"]
    for tag in first:
        browser.card(tag, "canvases")
    assert len(browser.cards()) == len(first)


@pytest.mark.parametrize("tag", HISTOGRAMS)
def test_the_histograms_tab_shows_one_outline_an_evaluation(address, browser, events, tag):
    if browser.tab != "histograms":
        browser.open(address, "histograms", tagFilter=".")
    assert browser.card(tag, "outlines")["outlines"] == len(events.Histograms(tag))


@pytest.mark.parametrize("tag", PICTURES)
def test_the_images_tab_shows_a_picture(address, browser, events, tag):
    assert tag in events.Tags()["images"]
    if browser.tab != "images":
        browser.open(address, "images", tagFilter=".")
    assert browser.card(tag, "pictures")["pictures"] == 1


def test_the_custom_scalars_tab_shows_every_chart_of_the_layout(address, browser, layout):
    assert layout
    browser.open(address, "custom_scalars")
    for title, margins, lines in layout:
        card = browser.card(title, "lines")
        assert card["lines"] >= len(margins) + len(lines)
        assert card["areas"] == len(margins)


@pytest.mark.parametrize("margin", MARGINS, ids=lambda tags: tags[0])
def test_the_custom_scalars_show_a_basin_with_its_interval(layout, margin):
    assert margin in [series for _, margins, _ in layout for series in margins]


@pytest.mark.parametrize("tag", LINES)
def test_the_custom_scalars_show_a_line(layout, tag):
    # Tags of lines are regular expressions, which TensorBoard matches from the start on.
    assert any(re.match(pattern, tag) for _, _, lines in layout for pattern in lines)


@pytest.mark.parametrize("size", WINDOWS)
def test_the_overview_comes_first_and_every_second_dot_of_it_is_shown(address, browser, events, size):
    browser.driver.set_window_size(*size)
    browser.open(address, "timeseries", smoothing="0")
    browser.card("0_netdyn/overview", "pictures")
    assert "0_netdyn/overview" in browser.cards()[0]["words"] + browser.cards()[0]["titles"]
    box = browser.driver.execute_script(
        "const box = document.querySelector('image-card img').getBoundingClientRect(); return [box.width, box.height]"
    )
    assert box == [326, 215]
    picture = Image.open(io.BytesIO(events.Images("0_netdyn/overview")[-1].encoded_image_string))
    assert picture.size == (652, 430)


SHOTS = {
    "timeseries": ({"smoothing": "0"}, "pictures"),
    "custom_scalars": ({}, "lines"),
    "histograms": ({"tagFilter": "order_index|radii"}, "outlines"),
    "images": ({"tagFilter": "."}, "pictures"),
}


@pytest.mark.parametrize("tab", SHOTS)
def test_screenshots_are_small_and_not_blank(address, browser, tmp_path, tab):
    query, drawn = SHOTS[tab]
    browser.driver.set_window_size(1500, 1000)
    browser.open(address, tab, **query)
    if tab == "timeseries":
        # Beside the picture there are cards with curves.
        browser.card("0_netdyn/overview", drawn)
        browser.close_settings()
        time.sleep(1)
    else:
        browser.settled(drawn)
    # The documentation shows this one.
    path = (ROOT / KEPT if KEPT and tab == "timeseries" else tmp_path) / f"tensorboard_{tab}.png"
    browser.screenshot(path)
    assert path.stat().st_size < 300_000
    with Image.open(path) as picture:
        assert picture.size[0] == 1500
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 50


@pytest.fixture(scope="module")
def pages(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of the run, and two pages of the documentation."""
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(site)]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    report = logs / RUN / "netdyn_report.html"
    return {"report": report, "docs_index": site / "index.html", "docs_reading": site / "reading.html"}


@pytest.mark.parametrize("name", ["report", "docs_index", "docs_reading"])
def test_screenshots_of_pages_fit_their_window(browser, pages, tmp_path, name):
    page = pages[name] if pages[name].exists() else pages[name].with_suffix("") / "index.html"
    browser.driver.set_window_size(1280, 1000)
    browser.driver.get(page.as_uri())
    wide, window = browser.driver.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide <= window
    path = tmp_path / f"{name}.png"
    browser.screenshot(path)
    assert path.stat().st_size < 300_000
    with Image.open(path) as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 20
