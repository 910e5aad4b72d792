"""Weights & Biases: scalars, histograms, figures and texts, on a step axis that leaves the user's own alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from torch import Tensor

from netdyn._utils.drawing import pixels
from netdyn.loggers.base import Destination

#: The axis of Lightning's own logger, and ours in a run that the user has made.
LIGHTNING_AXIS, AXIS = "trainer/global_step", "netdyn/step"


class LightningWandb(Destination):
    """Lightning's ``WandbLogger``, which plots everything over ``trainer/global_step``."""

    shows_figures = True

    @property
    def folder(self) -> str | None:
        """The folder of the run, whose files W&B uploads."""
        return _folder(self.logger.experiment)

    def histograms(self, values: Mapping[str, Tensor], step: int) -> None:
        """Send histograms."""
        self._send(_histograms(values), step)

    def figures(self, figures: Mapping[str, Any], step: int) -> None:
        """Send figures as images."""
        self._send(_images(figures), step)

    def text(self, tag: str, lines: Sequence[str], step: int) -> None:
        """Send a text as a panel."""
        self._send({tag: _panel(lines)}, step)

    def _send(self, values: dict[str, Any], step: int) -> None:
        # Together: every call of `log` is a row of its own.
        if values and (run := self.logger.experiment) is not None:
            run.log({self.prefix + tag: value for tag, value in values.items()} | {LIGHTNING_AXIS: step})


class Wandb(Destination):
    """A run of the user's own. Its step counts calls of ``log``, so netdyn's numbers join the user's next row."""

    shows_figures = True
    name = "W&B"

    def __init__(self, logger: Any) -> None:
        super().__init__(logger)
        self._known: set[str] = set()
        self._last = (-1, -1)  # the run's row and netdyn's step of the last numbers sent

    @property
    def folder(self) -> str | None:
        """The folder of the run, whose files W&B uploads."""
        return _folder(self.logger)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Send finite numbers."""
        self._send(dict(values), step)

    def histograms(self, values: Mapping[str, Tensor], step: int) -> None:
        """Send histograms."""
        self._send(_histograms(values), step)

    def figures(self, figures: Mapping[str, Any], step: int) -> None:
        """Send figures as images."""
        self._send(_images(figures), step)

    def text(self, tag: str, lines: Sequence[str], step: int) -> None:
        """Send a text as a panel."""
        self._send({tag: _panel(lines)}, step)

    def _send(self, values: dict[str, Any], step: int) -> None:
        run = self.logger
        row, before = self._last
        if run.step == row and step != before:
            # The user has logged nothing since the last evaluation, whose numbers would be overwritten.
            run.log({}, commit=True)
        for tag in values.keys() - self._known:
            run.define_metric(tag, step_metric=AXIS)
        self._known |= values.keys()
        run.log(values | {AXIS: step}, commit=False)
        self._last = run.step, step

    def close(self) -> None:
        """End netdyn's last row, unless the user has done so."""
        if self.logger.step == self._last[0]:
            self.logger.log({}, commit=True)


def _folder(run: Any) -> str | None:
    found = getattr(run, "dir", None)
    return found if isinstance(found, str) else None


def _histograms(values: Mapping[str, Tensor]) -> dict[str, Any]:
    import wandb

    return {tag: wandb.Histogram(own.numpy()) for tag, own in values.items()}  # type: ignore[arg-type]


def _images(figures: Mapping[str, Any]) -> dict[str, Any]:
    import wandb

    return {tag: wandb.Image(pixels(figure).numpy()) for tag, figure in figures.items()}


def _panel(lines: Sequence[str]) -> Any:
    import wandb

    first, *others = map(escape, lines)
    sentences = "".join(f"<li>{sentence}</li>" for sentence in others)
    return wandb.Html(f"<b>{first}</b><ul>{sentences}</ul>")
