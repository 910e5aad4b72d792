"""One evaluation's reading of the layers: as they were last time, and anew where they no longer are."""

from __future__ import annotations

import torch
from torch import Tensor

from netdyn._utils.doubts import Doubts
from netdyn._utils.trees import blocks, finite
from netdyn.engine.config import Settings
from netdyn.engine.layers import LayerReader, LayerReport, nonfinite, warn_of_nonfinite
from netdyn.engine.memory import Memory
from netdyn.probes.criteria import checked
from netdyn.probes.evaluator import Walk
from netdyn.tracing.survey import Survey, survey, warn_of_unread


class Reading:
    """Reads a walk's layers without waiting to know where the samples are in them.

    Where they are shows in the values of a survey, see :func:`netdyn.tracing.survey.survey`. It is taken to be where it
    was last time, or, the first time, where it usually is. When there is time to read the survey shows whether that was
    so; if not, all layers are read once more.

    Attributes:
        reader: Who has read the layers, and knows the network already; None before, and where it has failed.
    """

    def __init__(self, walk: Walk, settings: Settings, memory: Memory) -> None:
        self.walk, self.settings, self.memory = walk, settings, memory
        self.reader: LayerReader | None = None
        self._doubts = Doubts(None)
        self._survey: Survey | None = None
        #: Number of samples with outputs that are not finite.
        self._lost = torch.zeros((), dtype=torch.int64)

    def begin(self) -> Tensor:
        """Run the network; which samples are right, bool ``[samples]``."""
        crew = self.walk.crew
        doubts = Doubts(self.memory.answers)
        try:
            right = self._read(doubts)
            # Whoever failed is met here at the latest.
            crew.share(lambda: None)
            return right
        except Exception as error:
            crew.fail(error)
            if self._justified(doubts):
                self._warn_of_unread()
                raise
        return self._again()

    def instead(self) -> Tensor:
        """Which samples are right, where the layers could not be read, or nobody has asked for them."""
        walk = self.walk
        # If the reading has failed elsewhere, nobody has read.
        self.reader = None
        right = torch.empty(walk.samples, dtype=torch.bool, device=walk.target.device)
        self._lost = torch.zeros((), dtype=torch.int64, device=right.device)
        for part in blocks(walk.samples, walk.batch_size):
            inputs, target = walk.batch(part)
            outputs = walk.outputs(inputs)
            right[part] = checked(walk.criterion, outputs, target)
            self._lost += nonfinite(outputs).to(right.device)
        return right if walk.crew.size == 1 else walk.crew.share(right.cpu)[0].to(right.device)

    def finish(self) -> list[LayerReport]:
        """The layers' reports; here their numbers are read."""
        if self.reader is None:
            return []
        if not self._justified(self._doubts):
            self._again()
        self.memory.answers = self._doubts.answers
        self._warn_of_unread()
        return self.reader.told()

    def warn_of_lost(self) -> None:
        """Say how many outputs are not finite; where the inputs are to blame, that has been said."""
        warn_of_nonfinite(int(self._lost) if self._lost and finite(self.walk.inputs) else 0, self.walk.samples)

    def _again(self) -> Tensor:
        """Look where the samples are, and then read."""
        try:
            return self._read(Doubts(None))
        except Exception:
            # The next evaluation need not find out as well.
            self.memory.answers = self._doubts.answers
            self._warn_of_unread()
            raise

    def _read(self, doubts: Doubts) -> Tensor:
        # What an earlier reading holds is let go of.
        self.reader, self._survey, self._doubts = None, None, doubts
        self._survey = survey(self.walk.model, self.walk.inputs, doubts)
        reader = LayerReader(self.walk, self.settings, self._survey)
        right = reader.read()
        self.reader, self._lost = reader, reader.lost
        return right

    def _warn_of_unread(self) -> None:
        if self._survey is not None:
            warn_of_unread(self.walk.model, self._survey)

    def _justified(self, doubts: Doubts) -> bool:
        """Whether what was assumed was so, on all processes."""
        return all(self.walk.crew.share(doubts.justified))
