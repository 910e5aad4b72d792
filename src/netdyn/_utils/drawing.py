"""Matplotlib in a style of our own, without pyplot; it is imported at the first drawing."""

from __future__ import annotations

import gc
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
    """Use matplotlib's default style inside, whatever the user's is. Letters that its font lacks are shown as boxes."""
    if not available():
        raise ImportError(MISSING)
    from matplotlib import rc_context, style

    # Hinting moves the edges of letters to whole dots, which takes a tenth of the time of a drawing.
    with style.context("default"), rc_context({"text.hinting": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        yield


@contextmanager
def without_collector() -> Iterator[None]:
    """Leave Python's collector of cyclic garbage off inside, if it is on.

    A set of figures consists of so many objects that it would look through everything that the process has (0.3 s
    beside torch and Lightning). Afterwards it finds the figures among the youngest objects.
    """
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


@styled()
def pixels(figure: Figure) -> Tensor:
    """A figure as an image, uint8 ``[height, width, 3]``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy())  # type: ignore[no-untyped-call]
