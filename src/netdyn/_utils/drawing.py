"""Matplotlib in a style of our own, without pyplot; it is imported at the first drawing."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The error if matplotlib is missing.
MISSING = (
    "Figures need matplotlib, which is not installed. In a clone of netdyn, install it with: pip install '.[plot]'."
)


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


@contextmanager
def styled() -> Iterator[None]:
    """Use matplotlib's default style inside, whatever the user's is."""
    if not available():
        raise ImportError(MISSING)
    from matplotlib import style

    with style.context("default"):
        yield


@styled()
def pixels(figure: Figure) -> Tensor:
    """A figure as an image, uint8 ``[height, width, 3]``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # Letters that the font lacks are shown as boxes.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        canvas.draw()  # type: ignore[no-untyped-call]
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy())  # type: ignore[no-untyped-call]
