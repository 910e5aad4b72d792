"""How a walk begins: a probe is looked at, and the criterion found that fits a model's outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from netdyn._utils import checks
from netdyn._utils.doubts import Doubts
from netdyn._utils.transit import sent, together
from netdyn._utils.trees import Inputs, blocks, copied, count, finite, sample_tensors, take, tensors
from netdyn.probes.criteria import Criterion, as_logits
from netdyn.probes.evaluator import Sound, Walk
from netdyn.probes.probe import Probe
from netdyn.probes.tasks import find_task
from netdyn.tracing.survey import survey

#: How far a predicted number may move before it counts as wrong, in standard deviations of its target.
TOLERANCE = 0.5


def prepare_walk(
    model: nn.Module, inputs: Inputs, target: Tensor, criterion: Criterion | None, batch_size: int | None
) -> Walk:
    """Check a probe, and pick the criterion that fits the model's outputs; inside :func:`isolated`."""
    walk = begin_walk(model, Probe(inputs, target), criterion, batch_size)
    warn_of_unsound(walk.sound)
    return walk


def begin_walk(
    model: nn.Module, probe: Probe, criterion: Criterion | None, batch_size: int | None, tolerance: float = TOLERANCE
) -> Walk:
    """:func:`prepare_walk` as far as nobody has to wait for the model; :func:`warn_of_unsound` does the rest."""
    inputs = probe.inputs
    if batch_size is not None:
        checks.whole("batch_size", batch_size)
    samples = count(inputs)
    if samples == 0:
        raise ValueError("`inputs` must hold at least one sample, got none.")
    if not isinstance(probe.target, Tensor):
        raise TypeError(f"`target` must be a tensor with one entry a sample, got {type(probe.target).__name__}.")
    few = take(inputs, slice(0, 2))
    outputs, again = model(copied(few)), model(copied(few))
    cut = sample_tensors(inputs)

    def everything() -> Tensor:
        parts = [model(copied(take(inputs, part, cut))) for part in blocks(samples, batch_size)]
        return torch.cat([as_logits(part, len(part)) for part in parts])

    sound = finite(inputs), _same(outputs, again)
    with explained(sound):
        task = find_task(
            outputs,
            probe.at_hand,
            samples,
            criterion,
            # Nothing of it is asked for that its doubts bear on.
            probability=lambda: survey(model, inputs, Doubts({}), check=False).probabilities,
            everything=everything,
            tolerance=tolerance,
        )
    weight = next(model.parameters(), None)
    device = probe.target.device if weight is None else weight.device
    if task.numbers is not None:
        device = task.target.device  # that of the outputs, with which these are compared
    return Walk(
        model,
        inputs,
        # Where it was there already it need not be sent.
        sent(probe.target if task.target is probe.at_hand else task.target, device),
        task.criterion,
        task.num_classes,
        batch_size,
        numbers=None if task.numbers is None else sent(task.numbers, device),
        at_hand=task.target if task.num_classes > 1 else None,
        sound=sound,
    )


@contextmanager
def explained(sound: Sound) -> Iterator[None]:
    """Within, an error comes after the warnings of what may be the cause of it."""
    try:
        yield
    except Exception:
        warn_of_unsound(sound)
        raise


def warn_of_unsound(sound: Sound) -> None:
    """Warn of inputs that are not finite, and of a model that is random; what has been found is read here."""
    (are_finite,), (are_same,) = together(sound)
    if not are_finite:
        checks.warn(
            "`inputs` holds NaN or inf. Samples whose outputs are not finite count as wrong; leave them out to measure "
            "the network alone."
        )
    if not are_same:
        checks.warn(
            "The model is random in eval mode: two calls with the same inputs put out different numbers. Its basins "
            "are those of the network and its own noise together. Switch off what is random, such as a functional "
            "dropout without `training=self.training`."
        )


def _same(first: object, second: object) -> Tensor:
    """Whether all tensors of two outputs are the same, NaN being itself; bool scalar."""
    pairs = list(zip(tensors(first), tensors(second), strict=False))
    if any(a.shape != b.shape for a, b in pairs):
        return torch.tensor(False)
    found = [((a == b) | ((a != a) & (b != b))).all() for a, b in pairs]
    return torch.stack([each.to(found[0].device) for each in found]).all() if found else torch.tensor(True)
