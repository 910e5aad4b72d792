"""Find a network's local fields.

A survey runs the network with two samples and with three: it finds the local fields, names them, and finds out where
in each the samples are. What it found is what later runs read.
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
from netdyn.tracing.sample_axis import SampleAxis, best, evidence, own_places, possible
from netdyn.tracing.site import Key, Site
from netdyn.tracing.tracer import Tracer, run, traced


@dataclass(frozen=True)
class Survey:
    """What there is to read in a network.

    Attributes:
        found: Names of the local fields that activations read, in order of execution, each with its key.
        axes: Where the samples are in the tensors of a run; None for those that have none.
        outputs: Names of the modules whose outputs were seen.
        probabilities: Whether the network's outputs are probabilities.
        pooled: Names of the local fields that a max-pooling follows.
        mixed: Names of what an activation read in which samples cannot be told apart.
        packed: Names of the modules that ran on packed sequences.
    """

    found: Mapping[str, Key]
    axes: Mapping[Key, SampleAxis | None]
    outputs: frozenset[str]
    probabilities: bool
    pooled: frozenset[str]
    mixed: tuple[str, ...] = ()
    packed: frozenset[str] = frozenset()


#: Samples of the run that checks what two and three have shown.
CHECKED = 16


def discover(model: nn.Module, inputs: Inputs, check: bool = True) -> Survey:
    """Find a network's local fields, and say what cannot be read; see :func:`survey`."""
    found = survey(model, inputs, check)
    warn_of_unread(model, found)
    return found


def survey(model: nn.Module, inputs: Inputs, check: bool = True) -> Survey:
    """Find a network's local fields: run two samples, then three, and to ``check`` these, three among others.

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
    """The local fields that do not hold every sample in its place, when three known ones run among others.

    Networks that sort their batch, or send each sample another way, can look orderly with three.
    """
    wrong: list[Key] = []
    kept: dict[Key, Tensor] = {}
    among = torch.cat([chosen, evenly_spaced(count(inputs), CHECKED)])

    def visit(site: Site) -> None:
        if site.key not in seen:
            return
        rows, known = site.axis.rows(site.field), site.axis.rows(seen[site.key])
        if len(rows) != len(among):
            wrong.append(site.key)
        elif rows.shape[1:] == known.shape[1:]:
            kept[site.key] = own_places(known, rows)

    run(model, take(inputs, among), visit, axes=axes)
    return wrong + [key for key, in_place in kept.items() if not bool(in_place)]


def _axes(two: Mapping[Key, Tensor], three: Mapping[Key, Tensor]) -> tuple[dict[Key, SampleAxis | None], list[str]]:
    """Layouts of what both runs have seen, and the names of the modules whose samples cannot be told apart."""
    axes: dict[Key, SampleAxis | None] = {}
    unclear: set[Key] = set()
    for key in two.keys() & three.keys():
        axes[key] = None
        try:
            some = possible(two[key], three[key])
        except ValueError:
            unclear.add(key)
            continue
        if some:
            axes[key] = best(some, numbers([evidence(each, two[key], three[key]) for each in some]))
            if axes[key] is None:
                unclear.add(key)
    return axes, sorted({key[1] for key in unclear if key[0] == "call"})


def warn_of_unread(model: nn.Module, survey: Survey) -> None:
    """One warning that names what is hidden from us."""
    hidden = {
        "are TorchScript": [n for n, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule)],
        "are quantised": [n for n, m in model.named_modules() if is_quantised(m) and not n.endswith("._packed_params")],
        "run on packed sequences": sorted(survey.packed),
        "mix or sort the samples of a batch, or see only some": list(survey.mixed),
    }
    said = "; ".join(f"the modules {names} {what}" for what, names in hidden.items() if names)
    if said:
        warn(
            f"Not all of the network can be read: {said}. The local fields inside are left out, and so are layers from "
            "which no gradient reaches the output."
        )
