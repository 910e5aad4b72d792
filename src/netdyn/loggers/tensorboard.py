"""TensorBoard: scalars, histograms, figures, texts and a page of custom scalars."""

from __future__ import annotations

import os
import re
import shlex
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from torch import Tensor

from netdyn._utils.drawing import pixels
from netdyn.loggers.base import Destination
from netdyn.tags import Tag

#: Bins of a histogram, of equal width. The writer's own are as wide as a tenth of their distance from zero, so that an
#: index of 0.93 and one of 0.99 fall into the same, and take five times as long.
BINS = 64

Layout = dict[str, dict[str, list[Any]]]
"""Category → title of a chart → its kind, ``"Multiline"`` or ``"Margin"``, and tags, as a SummaryWriter takes it."""

#: Larger records of an event file hold no layout and are skipped.
_LARGEST = 1 << 20


class TensorBoard(Destination):
    """A ``SummaryWriter``, which is closed at the end if it was ``opened`` here."""

    shows_figures = True
    name = "TensorBoard"

    def __init__(self, logger: Any, opened: bool = False) -> None:
        super().__init__(logger)
        self._opened = opened

    @property
    def writer(self) -> Any:
        """The writer."""
        return self.logger

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write finite numbers."""
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, global_step=step)

    def histograms(self, values: Mapping[str, Tensor], step: int) -> None:
        """Write histograms of finite float32 values (the writer raises on others)."""
        writer = self.writer
        for tag, own in values.items():
            writer.add_histogram(self.prefix + tag, own.numpy(), global_step=step, bins=BINS)

    def figures(self, figures: Mapping[str, Any], step: int) -> None:
        """Write matplotlib figures as images; the writer's own ``add_figure`` would import pyplot."""
        writer = self.writer
        for tag, figure in figures.items():
            writer.add_image(self.prefix + tag, pixels(figure).numpy(), global_step=step, dataformats="HWC")

    def text(self, tag: str, lines: Sequence[str], step: int) -> None:
        """Write a text in Markdown: its first line in bold letters, and the sentences as a list."""
        first, *others = map(markdown, lines)
        text = "\n".join([f"**{first}**", "", *(f"- {sentence}" for sentence in others)])
        self.writer.add_text(self.prefix + tag, text, global_step=step)

    def about(self, tags: Iterable[Tag], prefix: str) -> None:
        """Write the table of tags as a text, beside the curves that it explains."""
        rows = "\n".join(f"| `{prefix}{tag.name}` | {tag.unit} | {tag.meaning} |" for tag in tags)
        text = f"| tag | unit | what it is |\n|---|---|---|\n{rows}"
        self.writer.add_text(f"{self.prefix}{prefix}netdyn/about", text, 0)

    def arrange(self, measure: Collection[str], prefix: str) -> None:
        """Add netdyn's charts to the page of custom scalars, beside those of the user.

        TensorBoard shows only the last layout of a run, so the one before is read back and written again with netdyn's.
        Nothing is written if they are there, or if the event files cannot be read: it could replace the user's layout.
        """
        writer = self.writer
        folder = Path(getattr(writer, "log_dir", None) or "")
        if not any(folder.glob("*tfevents*")):
            return
        writer.flush()
        before = last_layout(folder)
        after = before | layout(measure, self.prefix + prefix)
        if after != before:
            writer.add_custom_scalars(after)

    def close(self) -> None:
        """Close the writer, if it was opened here."""
        if self._opened:
            self.writer.close()

    @property
    def page(self) -> str:
        """The command that starts TensorBoard on the writer's folder."""
        folder = getattr(self.writer, "log_dir", None)
        return f"tensorboard --logdir {shlex.quote(os.fspath(folder))}" if folder else ""


class LightningTensorBoard(TensorBoard):
    """Lightning's ``TensorBoardLogger``, which makes its writer on first use."""

    @property
    def writer(self) -> Any:
        """The logger's writer."""
        return self.logger.experiment

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Send finite numbers as Lightning does."""
        Destination.scalars(self, values, step)


def markdown(text: str) -> str:
    r"""A text whose letters all stand for themselves in Markdown and in HTML, on one line.

    >>> print(markdown("layer a|b*c_ of <script>"))
    layer a&#124;b\*c\_ of &lt;script&gt;
    """
    text = re.sub(r"([\\`*_{}\[\]#!])", r"\\\1", escape(" ".join(text.split()), quote=False))
    return text.replace("|", "&#124;")


def opened(folder: str | os.PathLike[str]) -> TensorBoard:
    """The destination for a folder: a new writer of event files."""
    from torch.utils.tensorboard import SummaryWriter

    return TensorBoard(SummaryWriter(os.fspath(folder)), opened=True)


def layout(measure: Collection[str], before: str = "") -> Layout:
    """The charts of these measures on the page of custom scalars; ``before`` is the prefix of the tags."""

    def lines(*tags: str) -> list[Any]:
        # Tags of lines are regular expressions that match from the start; tags of margins are plain.
        return ["Multiline", [f"^{re.escape(before + tag)}$" for tag in tags]]

    def per_layer(kind: str) -> list[Any]:
        return ["Multiline", [f"^{re.escape(before + kind)}/"]]

    def band(tag: str, low: str, high: str) -> list[Any]:
        return ["Margin", [before + tag, before + low, before + high]]

    noise = {"sample": "inputs (σ per component)", "weight": "weights (standard deviations)"}
    basins = {
        f"{space} basin: noise on the {where} that it withstands, with 95 % interval": band(
            *(f"basin/{space}/{end}" for end in ("radius", "low", "high"))
        )
        for space, where in noise.items()
        if f"{space}_basin" in measure
    }
    modes = {
        "OPT: share of order-preserving units, per layer": per_layer("modes/opt_fraction"),
        "RPD gradient: order of the samples, per layer": per_layer("modes/rpd_gradient"),
        "dead units: share per layer": per_layer("modes/dead_fraction"),
    }
    # A whole number: lines would be smoothed, the middle of a band is not.
    depth = {"functional depth: first layer of the linear tail": band(*["linear/functional_depth"] * 3)}
    tails = {"linear tail: accuracy without the activations from a layer on": per_layer("linear/tail_accuracy")}
    phases = {"phase index: order rises with depth (1) or falls (−1)": lines("phase/index")}
    gap = {"batch-norm gap: accuracy gained with batch statistics": lines("batchnorm/gap")}
    categories: dict[str, dict[str, list[Any]]] = {
        "accuracy": {"accuracy: training and validation probe": lines("probe/accuracy", "probe/val_accuracy")}
        | (gap if "batchnorm" in measure else {}),
        "basins": basins,
        "layers": modes | phases if "modes" in measure else {},
        "linear part": depth | tails if "linear" in measure else {},
        "cost": {"overhead: time of measuring per time of training": lines("netdyn/overhead")},
    }
    whose = f" ({before.rstrip('/-')})" if before else ""
    return {f"netdyn {title}{whose}": charts for title, charts in categories.items() if charts}


def last_layout(folder: Path) -> Layout:
    """The layout that TensorBoard shows for a run; empty if there is none."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.plugins.custom_scalar.layout_pb2 import Layout as Message
    from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG

    found: Layout = {}
    for file in sorted(folder.glob("*tfevents*")):
        for record in _records(file):
            if CONFIG_SUMMARY_TAG.encode() in record:
                for value in Event.FromString(record).summary.value:
                    if value.tag == CONFIG_SUMMARY_TAG:
                        found = _as_layout(Message.FromString(value.tensor.string_val[0]))
    return found


def _records(file: Path) -> Iterator[bytes]:
    """The small records of an event file. Around each: its length in 8 bytes, a checksum of 4, and another one of 4."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        while len(header := stream.read(12)) == 12:
            (length,) = struct.unpack("<Q", header[:8])
            # The last record may not be complete yet.
            if stream.tell() + length > size:
                return
            if length <= _LARGEST:
                yield stream.read(length)
            else:
                stream.seek(length, 1)
            stream.seek(4, 1)


def _as_layout(message: Any) -> Layout:
    """A layout as a SummaryWriter takes it: margin charts have one series, so that each series gets its own chart."""
    found: Layout = {}
    for category in message.category:
        charts = found.setdefault(category.title, {})
        for chart in category.chart:
            if chart.HasField("margin"):
                for number, series in enumerate(chart.margin.series, start=1):
                    title = chart.title if number == 1 else f"{chart.title} ({number})"
                    charts[title] = ["Margin", [series.value, series.lower, series.upper]]
            else:
                charts[chart.title] = ["Multiline", list(chart.multiline.tag)]
    return found
