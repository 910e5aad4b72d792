"""TensorBoard: scalars, histograms, figures, the table of tags and a page of custom scalars."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from netdyn.loggers.base import Destination
from netdyn.report.figures.canvas import pixels
from netdyn.tags import Tag

Layout = dict[str, dict[str, list[Any]]]
"""Category → title of a chart → its kind, ``"Multiline"`` or ``"Margin"``, and its tags: what a SummaryWriter takes."""

#: Records of an event file larger than this hold no layout and are skipped.
_LARGEST = 1 << 20


class TensorBoard(Destination):
    """A ``SummaryWriter``.

    Args:
        logger: The writer.
        opened: Whether it was opened here, and is to be closed here.
    """

    shows_figures = True
    name = "TensorBoard"

    def __init__(self, logger: Any, opened: bool = False) -> None:
        super().__init__(logger)
        self._opened = opened

    @property
    def writer(self) -> Any:
        """The writer."""
        return self.logger

    @property
    def prefix(self) -> str:
        """What the logger itself puts before every tag."""
        return ""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write finite numbers."""
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, global_step=step)

    def histograms(self, values: Mapping[str, Tensor], step: int) -> None:
        """Write histograms of finite float32 values (the writer raises on others)."""
        writer = self.writer
        for tag, own in values.items():
            writer.add_histogram(self.prefix + tag, own.numpy(), global_step=step)

    def figures(self, figures: Mapping[str, Any], step: int) -> None:
        """Write matplotlib figures as images.

        They are turned into pixels here: the writer's own ``add_figure`` would bring in pyplot.
        """
        writer = self.writer
        for tag, figure in figures.items():
            writer.add_image(self.prefix + tag, pixels(figure).numpy(), global_step=step, dataformats="HWC")

    def about(self, tags: Iterable[Tag], prefix: str) -> None:
        """Write the table of tags as a text: a page of curves that explains them."""
        rows = "\n".join(f"| `{prefix}{tag.name}` | {tag.unit} | {tag.meaning} |" for tag in tags)
        text = f"| tag | unit | what it is |\n|---|---|---|\n{rows}"
        self.writer.add_text(f"{self.prefix}{prefix}netdyn/about", text, 0)

    def arrange(self, measure: Collection[str], prefix: str) -> None:
        """Add our charts to the page of custom scalars, beside those that a user has put there.

        TensorBoard shows only the last layout of a run. So the one written before is read back from the run's event
        files and written once more with our categories after it. If ours are all there already, nothing is written. A
        layout that a user writes later replaces this one until this method is called again.

        Where the event files cannot be read back, as in a remote folder, nothing is written: it might replace a layout
        of the user's.
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


class LightningTensorBoard(TensorBoard):
    """Lightning's ``TensorBoardLogger``, which makes its writer when it is first asked for it."""

    @property
    def writer(self) -> Any:
        """The logger's writer."""
        return self.logger.experiment

    @property
    def prefix(self) -> str:
        """Lightning joins a logger's prefix to the names of scalars with a hyphen."""
        own = getattr(self.logger, "_prefix", "")
        return f"{own}-" if own else ""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Send finite numbers the way that Lightning does."""
        Destination.scalars(self, values, step)


def opened(folder: str | os.PathLike[str]) -> TensorBoard:
    """A new writer of event files in a folder."""
    from torch.utils.tensorboard import SummaryWriter

    return TensorBoard(SummaryWriter(os.fspath(folder)), opened=True)


def layout(measure: Collection[str], before: str = "") -> Layout:
    """Our page of custom scalars: basins with their intervals, phase, functional depth, accuracy and cost.

    Custom scalars have one colour a run, so that a chart holds no more than can be told apart by shape; what varies
    over layers is shown as heat maps.

    Args:
        measure: What is measured, as in :func:`netdyn.diagnose`. Charts of other things are left out.
        before: What stands before the tags.

    Returns:
        Categories whose names begin with ``netdyn``.
    """

    def lines(*tags: str) -> list[Any]:
        # Tags of lines are regular expressions, which match from the start on; those of margins are not.
        return ["Multiline", [f"^{re.escape(before + tag)}$" for tag in tags]]

    basins: dict[str, list[Any]] = {
        f"{space} basin": ["Margin", [f"{before}basin/{space}/{end}" for end in ("radius", "low", "high")]]
        for space in ("sample", "weight")
        if f"{space}_basin" in measure
    }
    phases = {name: lines(f"phase/{name}") for name in ("index", "spread", "mean")} if "modes" in measure else {}
    depth = {"functional depth": lines("linear/functional_depth")} if "linear" in measure else {}
    gap = {"batch-norm gap": lines("batchnorm/gap")} if "batchnorm" in measure else {}
    categories = {
        "basins": basins,
        "phase": phases,
        "linear layers": depth,
        "accuracy": {"accuracy on the probes": lines("probe/accuracy", "probe/val_accuracy")} | gap,
        "cost": {"share of the training time": lines("netdyn/overhead")},
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
    """The small records of an event file: each has its length in 8 bytes, 4 of a checksum, its content, 4 more."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        while len(header := stream.read(12)) == 12:
            (length,) = struct.unpack("<Q", header[:8])
            # The last record may still be on its way.
            if stream.tell() + length > size:
                return
            if length <= _LARGEST:
                yield stream.read(length)
            else:
                stream.seek(length, 1)
            stream.seek(4, 1)


def _as_layout(message: Any) -> Layout:
    """A layout as a SummaryWriter takes it, in which a margin chart has one series: one chart for each of them."""
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
