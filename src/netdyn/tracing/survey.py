"""Survey a network: find its local fields, their names, and the axis of the samples in each, for later runs."""

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
from netdyn.tracing.site import Axes, Key, Site
from netdyn.tracing.tracer import Tracer, run, traced


@dataclass(frozen=True)
class Survey:
    """What can be read in a network."""

    found: Mapping[str, Key]  #: names of the inputs of activations, in order of execution
    axes: Axes
    outputs: frozenset[str]  #: names of the modules whose outputs can be read
    probabilities: bool  #: whether the network's outputs are probabilities
    pooled: frozenset[str]  #: names of the local fields that a max-pooling follows
    mixed: tuple[str, ...]  #: names of the inputs of activations in which the samples cannot be told apart
    packed: frozenset[str]  #: names of the modules that run on packed sequences


#: Number of samples in the run that checks the survey.
CHECKED = 16


def discover(model: nn.Module, inputs: Inputs) -> Survey:
    """Survey a network, and warn once, with the names of all that cannot be read."""
    found = survey(model, inputs)
    hidden = {
        "are TorchScript": [n for n, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule)],
        "are quantised": [n for n, m in model.named_modules() if is_quantised(m) and not n.endswith("._packed_params")],
        "run on packed sequences": sorted(found.packed),
        "mix or sort the samples of a batch, or see only some": list(found.mixed),
    }
    reasons = "; ".join(f"the modules {names} {what}" for what, names in hidden.items() if names)
    if reasons:
        warn(
            f"Not all of the network can be read: {reasons}. The local fields inside are left out, and so are layers "
            "from which no gradient reaches the output."
        )
    return found


def survey(model: nn.Module, inputs: Inputs, check: bool = True) -> Survey:
    """Find a network's local fields in runs of two samples and of three; ``check`` adds one of these among others."""
    samples = count(inputs)
    if samples == 0:
        raise ValueError("`inputs` must hold at least one sample, got none.")
    chosen = evenly_spaced(samples, 3) if samples > 2 else torch.arange(3).clamp(max=samples - 1)
    sites: list[Site] = []
    two = Tracer(model, 2, lambda site: None, axes=None)
    with traced(two, model, take(inputs, chosen[:2])):
        pass
    three = Tracer(model, 3, sites.append, axes=None)
    with traced(three, model, take(inputs, chosen)) as (output, logits):
        probabilities = logits is not output
    axes, mixed = _axes(two.seen, three.seen)
    axes |= dict.fromkeys(two.refused | three.refused)
    if check and samples > 3:
        wrong = _displaced(model, inputs, chosen, axes, three.seen)
        axes |= dict.fromkeys(wrong)
        mixed |= {key[1] for key in wrong}
    found: dict[str, Key] = {}
    runs: Counter[str] = Counter()
    for site in sites:
        if axes.get(site.key) is not None:
            found[numbered(site.name, runs[site.name])] = site.key
            runs[site.name] += 1
    before = {site.key for site in sites[: three.pooled]}
    pooled = frozenset(name for name, key in found.items() if key in before)
    outputs = frozenset(key[1] for key in three.seen if key[0] == "output" and axes.get(key) is not None)
    return Survey(found, axes, outputs, probabilities, pooled, tuple(sorted(mixed)), frozenset(three.packed))


def _displaced(model: nn.Module, inputs: Inputs, chosen: Tensor, axes: Axes, seen: Mapping[Key, Tensor]) -> list[Key]:
    """The fields in which known samples are displaced among others: three may not show that a batch is sorted."""
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


def _axes(two: Mapping[Key, Tensor], three: Mapping[Key, Tensor]) -> tuple[dict[Key, SampleAxis | None], set[str]]:
    """The axes of all tensors that are in both runs, and the names of the calls whose samples cannot be told apart."""
    axes: dict[Key, SampleAxis | None] = dict.fromkeys(two.keys() & three.keys())
    unclear: set[Key] = set()
    for key in axes:
        try:
            candidates = candidate_axes(two[key], three[key])
        except ValueError:
            unclear.add(key)
            continue
        axes[key] = choose_axis(candidates, numbers([axis_scores(axis, two[key], three[key]) for axis in candidates]))
        if candidates and axes[key] is None:
            unclear.add(key)
    return axes, {key[1] for key in unclear if key[0] == "call"}
