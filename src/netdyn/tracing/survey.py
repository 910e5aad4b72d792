"""Survey a network: find its local fields.

A survey runs the network with two samples and with three. It finds the local fields, their names, and the axis of the
samples in each. Later runs read what the survey has found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from netdyn._utils.checks import warn
from netdyn._utils.trees import Inputs, count, evenly_spaced, numbers, take
from netdyn.tracing.names import is_quantised, numbered
from netdyn.tracing.sample_axis import SampleAxis, axis_scores, candidate_axes, choose_axis, same_positions
from netdyn.tracing.site import Key, Site
from netdyn.tracing.tracer import Tracer, run, traced


@dataclass(frozen=True)
class Survey:
    """What can be read in a network.

    Attributes:
        found: Names of the inputs of activations, in order of execution, each with its key.
        axes: The axis of the samples in each tensor of a run; None for tensors without samples.
        outputs: Names of the modules whose outputs can be read.
        probabilities: Whether the network's outputs are probabilities.
        pooled: Names of the local fields that a max-pooling follows.
        mixed: Names of the inputs of activations in which the samples cannot be told apart.
        packed: Names of the modules that run on packed sequences.
    """

    found: Mapping[str, Key]
    axes: Mapping[Key, SampleAxis | None]
    outputs: frozenset[str]
    probabilities: bool
    pooled: frozenset[str]
    mixed: tuple[str, ...] = ()
    packed: frozenset[str] = frozenset()


#: Number of samples in the run that checks the survey.
CHECKED = 16


def discover(model: nn.Module, inputs: Inputs, check: bool = True) -> Survey:
    """Survey a network, see :func:`survey`, and warn of what cannot be read."""
    found = survey(model, inputs, check)
    warn_of_unread(model, found)
    return found


def survey(model: nn.Module, inputs: Inputs, check: bool = True) -> Survey:
    """Find a network's local fields with runs of two samples and of three.

    Args:
        model: The network, in eval mode.
        inputs: A batch of inputs, samples first.
        check: Check the axes of the samples with a third run, of the three samples among others.

    Raises:
        ValueError: If there is no sample.
    """
    samples = count(inputs)
    if samples == 0:
        raise ValueError("`inputs` must hold at least one sample, got none.")
    chosen = evenly_spaced(samples, 3) if samples > 2 else torch.arange(3).clamp(max=samples - 1)
    sites: list[Site] = []
    seen: list[dict[Key, Tensor]] = []
    refused: set[Key] = set()
    for number in (2, 3):
        sites.clear()
        tracer = Tracer(model, number, sites.append, axes=None)
        with traced(tracer, model, take(inputs, chosen[:number])) as (output, logits):
            seen.append(tracer.seen)
        refused |= tracer.refused
    axes, mixed = _axes(seen[0], seen[1])
    axes |= dict.fromkeys(refused)
    if check and samples > 3:
        wrong = _displaced(model, inputs, chosen, axes, seen[1])
        axes |= dict.fromkeys(wrong)
        mixed = sorted({*mixed, *(key[1] for key in wrong)})
    found: dict[str, Key] = {}
    pooled: set[str] = set()
    runs: Counter[str] = Counter()
    for number, site in enumerate(sites):
        if axes.get(site.key) is None:
            continue
        name = numbered(site.name, runs[site.name])
        runs[site.name] += 1
        found[name] = site.key
        if number < tracer.pooled:
            pooled.add(name)
    outputs = frozenset(key[1] for key in tracer.seen if key[0] == "output" and axes.get(key) is not None)
    return Survey(found, axes, outputs, logits is not output, frozenset(pooled), tuple(mixed), frozenset(tracer.packed))


def _displaced(
    model: nn.Module,
    inputs: Inputs,
    chosen: Tensor,
    axes: Mapping[Key, SampleAxis | None],
    seen: Mapping[Key, Tensor],
) -> list[Key]:
    """The local fields in which three known samples are displaced when they run among others.

    In a network that sorts its batch, or that chooses a path for each sample, this may not show with three samples.
    """
    wrong: list[Key] = []
    in_place: dict[Key, Tensor] = {}
    among = torch.cat([chosen, evenly_spaced(count(inputs), CHECKED)])

    def visit(site: Site) -> None:
        if site.key not in seen:
            return
        rows, known = site.axis.rows(site.field), site.axis.rows(seen[site.key])
        if len(rows) != len(among):
            wrong.append(site.key)
        elif rows.shape[1:] == known.shape[1:]:
            in_place[site.key] = same_positions(known, rows)

    run(model, take(inputs, among), visit, axes=axes)
    return wrong + [key for key, same in in_place.items() if not bool(same)]


def _axes(two: Mapping[Key, Tensor], three: Mapping[Key, Tensor]) -> tuple[dict[Key, SampleAxis | None], list[str]]:
    """The axes of all tensors that are in both runs, and the names of the calls whose samples cannot be told apart."""
    axes: dict[Key, SampleAxis | None] = {}
    unclear: set[Key] = set()
    for key in two.keys() & three.keys():
        axes[key] = None
        try:
            candidates = candidate_axes(two[key], three[key])
        except ValueError:
            unclear.add(key)
            continue
        if candidates:
            scores = numbers([axis_scores(axis, two[key], three[key]) for axis in candidates])
            axes[key] = choose_axis(candidates, scores)
            if axes[key] is None:
                unclear.add(key)
    return axes, sorted({key[1] for key in unclear if key[0] == "call"})


def warn_of_unread(model: nn.Module, survey: Survey) -> None:
    """Warn once, with the names of all that cannot be read."""
    hidden = {
        "are TorchScript": [n for n, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule)],
        "are quantised": [n for n, m in model.named_modules() if is_quantised(m) and not n.endswith("._packed_params")],
        "run on packed sequences": sorted(survey.packed),
        "mix or sort the samples of a batch, or see only some": list(survey.mixed),
    }
    reasons = "; ".join(f"the modules {names} {what}" for what, names in hidden.items() if names)
    if reasons:
        warn(
            f"Not all of the network can be read: {reasons}. The local fields inside are left out, and so are layers "
            "from which no gradient reaches the output."
        )
