"""The built documentation: its search finds the how-tos by the words that people type, also from the disk."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.browser import CHROMIUM, DRIVER, PATIENCE, Browser

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
#: What people type → the page that answers it.
ASKED = {
    "every n steps": "howto/cadence.html",
    "every_n_train_steps": "howto/cadence.html",
    "wandb": "howto/loggers.html",
    "mlflow": "howto/loggers.html",
    "comet": "howto/loggers.html",
    "exclude layers": "howto/layers.html",
    "leave layers out": "howto/layers.html",
    "too slow": "howto/cheaper.html",
    "max_overhead": "howto/cheaper.html",
    "huggingface": "howto/huggingface.html",
    "hugging face": "howto/huggingface.html",
    "dict batches": "howto/huggingface.html",
    "input_ids": "howto/huggingface.html",
    "own loop": "howto/own_loop.html",
    "plain pytorch": "howto/own_loop.html",
    "regression": "howto/regression.html",
    "DDP": "howto/gpus.html",
    "FSDP": "howto/gpus.html",
    "multi-GPU": "howto/gpus.html",
    "torchrun": "howto/gpus.html",
}
#: Where a page may stand in the list: a person sees the first few.
SEEN = 3


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, built as `make docs` builds them."""
    folder = tmp_path_factory.mktemp("site")
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, env=environment)
    return folder


@pytest.mark.parametrize(("words", "page"), ASKED.items())
def test_the_index_has_the_words_on_the_page(site: Path, words: str, page: str) -> None:
    entries = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    text = " ".join(f"{e['title']} {e['text']}" for e in entries if e["location"].partition("#")[0] == page).lower()
    missing = [word for word in words.lower().split() if word not in text]
    assert missing == []


def test_no_page_loads_a_script_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        scripts = re.findall(r'<script[^>]*\ssrc="([^"]*)"', page.read_text(encoding="utf-8"))
        assert scripts, page
        for script in scripts:
            # The page that a server shows for what is not there names files from the root.
            file = site / script[1:] if script.startswith("/") else page.parent / script
            assert file.resolve().is_file(), f"{page}: {script}"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no chromium or no chromedriver")
    pytest.importorskip("selenium")
    found = Browser(tmp_path_factory.mktemp("profile"), size=(1280, 900))
    yield found
    found.close()


def searched(browser: Browser, words: str) -> list[str]:
    """The pages that the search lists, as a person would type it; each page once."""
    from selenium.webdriver.support.ui import WebDriverWait

    driver: Any = browser.driver
    box = driver.find_element("css selector", "input[data-md-component=search-query]")
    driver.execute_script("arguments[0].focus(); arguments[0].value = ''", box)
    box.send_keys(words)
    found = "return [...document.querySelectorAll('.md-search-result__link')].map(a => a.getAttribute('href'))"
    WebDriverWait(driver, PATIENCE).until(lambda driver: driver.execute_script(found))
    pages = [re.sub(r"[?#].*", "", link) for link in driver.execute_script(found)]
    return list(dict.fromkeys("/".join(page.split("/")[-2:]) for page in pages))


@pytest.mark.browser
@pytest.mark.parametrize(("words", "page"), ASKED.items())
def test_the_search_finds_it_from_the_disk(site: Path, browser: Browser, words: str, page: str) -> None:
    browser.visit((site / "index.html").as_uri(), "docs")
    assert page in searched(browser, words)[:SEEN]
