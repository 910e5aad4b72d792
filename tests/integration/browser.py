"""TensorBoard and a headless Chromium in front of it: start both, open a tab, look for a card."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

FLAGS = [
    "--headless=new",
    "--no-sandbox",  # Chromium refuses its sandbox to root, and containers often run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
]

# What holds one chart of a tab, and what is drawn inside it. Half of TensorBoard's tabs are built of shadow trees.
CARDS = {
    "timeseries": "scalar-card, image-card, histogram-card",
    "histograms": "tf-histogram-loader",
    "images": "tf-image-loader",
    "custom_scalars": "tf-custom-scalar-margin-chart-card, tf-custom-scalar-multi-line-chart-card",
}

# Cards that are visible, in order: how far down each is, the words in it, the titles of its elements, and the numbers
# of curves, of histograms' outlines, of filled areas, of canvases and of loaded pictures.
LOOK = """
const inside = (root, visit) => {
  if (root.nodeType === Node.ELEMENT_NODE && ["STYLE", "SCRIPT", "TEMPLATE"].includes(root.tagName)) return;
  visit(root);
  if (root.shadowRoot) inside(root.shadowRoot, visit);
  for (const child of root.childNodes) inside(child, visit);
};
const cards = [];
inside(document.body, (card) => {
  if (!(card instanceof Element) || !card.matches(arguments[0]) || !card.getClientRects().length) return;
  const seen = {words: [], titles: [], lines: 0, outlines: 0, areas: 0, canvases: 0, pictures: 0};
  seen.top = card.getBoundingClientRect().top;
  inside(card, (node) => {
    if (node.nodeType === Node.TEXT_NODE && node.nodeValue.trim()) seen.words.push(node.nodeValue.trim());
    if (!(node instanceof Element)) return;
    if (node.getAttribute("title")) seen.titles.push(node.getAttribute("title"));
    const drawn = node.getBoundingClientRect().width > 0;
    seen.lines += drawn && node.matches("path.line");
    seen.areas += drawn && node.matches("path.area");
    seen.outlines += drawn && node.matches("path.outline");
    seen.canvases += drawn && node.matches("canvas");
    seen.pictures += drawn && node.matches("img") && node.complete && node.naturalWidth > 0;
  });
  cards.push(seen);
});
return cards;
"""


#: Seconds that something may take to appear. It takes few; after so many, even on a busy machine, it does not come.
PATIENCE = 180.0


@contextmanager
def tensorboard(logs: Path, journal: Path) -> Iterator[str]:
    """TensorBoard over a folder of logs, on a port of the loopback device that is free; gives its address."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", logs.name]
    # The fast loader is a process of its own that outlives a killed TensorBoard.
    command += ["--load_fast=false", "--host", "127.0.0.1", "--port", "0"]
    with journal.open("w", encoding="utf-8") as out:
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=logs.parent)
    try:
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(r"http://127\.0\.0\.1:\d+/", journal.read_text(encoding="utf-8"))):
            waiting = server.poll() is None and time.monotonic() < deadline
            assert waiting, journal.read_text(encoding="utf-8")
            time.sleep(0.1)
        yield found[0]
    finally:
        server.kill()  # it has nothing to save
        server.wait()


class Browser:
    """A headless Chromium with a profile of its own.

    Args:
        profile: An empty folder for the profile.
        size: Width and height of the window.
    """

    def __init__(self, profile: Path, size: tuple[int, int] = (1500, 1700)) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in [*FLAGS, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"]:
            options.add_argument(flag)
        # The driver is named, so that selenium looks for none, and downloads none.
        self.driver = webdriver.Chrome(options=options, service=Service(executable_path=DRIVER))
        # The usual ones are half a minute and more; a script that looks at a page waits for the page's own work.
        self.driver.set_script_timeout(PATIENCE)
        self.driver.set_page_load_timeout(PATIENCE)
        self.tab = ""

    def open(self, address: str, tab: str, **query: str) -> None:
        """Open a tab of TensorBoard; ``tagFilter`` and the like go where that tab looks for them."""
        words = "&".join(f"{name}={quote(value)}" for name, value in query.items())
        where = f"?{words}#{tab}" if tab == "timeseries" else "#" + "&".join(filter(None, (tab, words)))
        self.visit(address + where, tab)

    def visit(self, page: str, tab: str) -> None:
        """Open a page as it stands, which shows this tab."""
        # Another fragment alone would leave the page as it is.
        self.driver.get("about:blank")
        self.driver.get(page)
        self.tab = tab

    def cards(self) -> list[dict[str, Any]]:
        """What is to be seen on the cards of the open tab."""
        return self.driver.execute_script(LOOK, CARDS[self.tab])

    def card(
        self, name: str, drawn: str, complete: Callable[[dict[str, Any]], bool] = lambda card: True
    ) -> dict[str, Any]:
        """Wait for the card of this name, for something to be ``drawn`` on it ("lines", …), and for it to be complete.

        TensorBoard reads the logs bit by bit, and a card with a curve may still lack the curve's end.
        """
        deadline = time.monotonic() + PATIENCE
        reload = time.monotonic() + 8
        while True:
            cards = self.cards()
            for card in cards:
                if name in card["words"] + card["titles"] and card[drawn] and complete(card):
                    return card
            shown = [(card["words"], card[drawn]) for card in cards]
            assert time.monotonic() < deadline, (
                f"no complete card {name!r} with {drawn} in {self.tab}; there are {shown}"
            )
            # TensorBoard reads the logs while it already serves pages, and an open page asks again only later.
            if time.monotonic() > reload:
                self.driver.refresh()
                reload = time.monotonic() + 8
            time.sleep(0.2)

    def close_settings(self) -> None:
        """Close the pane of settings beside the time series, so that the charts have its room."""
        self.driver.find_element("xpath", "//button[normalize-space()='Settings']").click()

    def settled(self, drawn: str) -> None:
        """Wait until every visible card has something drawn on it, and two looks in a row find the same."""
        deadline, before = time.monotonic() + PATIENCE, None
        while True:
            height = self.driver.execute_script("return innerHeight")
            cards = [card for card in self.cards() if card["top"] < height]
            if cards and all(card[drawn] for card in cards) and cards == before:
                return
            assert time.monotonic() < deadline, f"{self.tab} does not come to rest: {cards}"
            before = cards
            time.sleep(0.5)

    def screenshot(self, path: Path) -> None:
        """Save the window as a PNG of 128 colours, which is enough for charts and a quarter of the size."""
        from PIL import Image

        with Image.open(io.BytesIO(self.driver.get_screenshot_as_png())) as picture:
            picture.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)

    def close(self) -> None:
        """End Chromium and its driver."""
        self.driver.quit()
