"""Survey a network: find its local fields, their names, and the axis of the samples in each, for later runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from netdyn._utils.inputs import check_inputs
from netdyn._utils.trees import Inputs, evenly_spaced, take
from netdyn.isolation.call_errors import trying
from netdyn.tracing.names import numbered
from netdyn.tracing.sample_axis import SampleAxis, candidate_axes, choose_axis
from netdyn.tracing.site import Axes, Key, Site
from netdyn.tracing.tracer import Tracer, traced


@dataclass(frozen=True)
class Survey:
    """What can be read in a network."""

    sites: tuple[tuple[str, Key], ...]  #: inputs of activations, in order of execution, each with its module's name
    axes: Axes
    probabilities: bool  #: whether the network's outputs are probabilities
    before_pool: frozenset[Key]  #: the local fields that a max-pooling follows
    mixed: frozenset[Key]  #: inputs of activations in which the samples cannot be told apart
    hidden: Mapping[str, Collection[str]]  #: names of modules whose activations cannot be read, by the reason
    unknown: frozenset[str]  #: names of modules whose outputs unknown element-wise functions lead to weights

    @cached_property
    def found(self) -> Mapping[str, Key]:
        """Names of the local fields, in order of execution."""
        named: dict[str, Key] = {}
        runs: Counter[str] = Counter()
        for name, key in self.sites:
            if self.axes.get(key) is not None:
                named[numbered(name, runs[name])] = key
                runs[name] += 1
        return named

    @cached_property
    def outputs(self) -> frozenset[str]:
        """Names of the modules whose outputs can be read."""
        return frozenset(key[1] for key, axis in self.axes.items() if key[0] == "output" and axis is not None)

    @cached_property
    def pooled(self) -> frozenset[str]:
        """Names of the local fields that a max-pooling follows."""
        return frozenset(name for name, key in self.found.items() if key in self.before_pool)

    @cached_property
    def signature(self) -> tuple[object, ...]:
        """What another survey of the same network shares, unless the network runs otherwise."""
        return self.sites, frozenset(self.axes.items()), self.mixed

    def without(self, refused: Iterable[Key]) -> Survey:
        """The same without local fields whose rows are not the samples' own."""
        refused = frozenset(refused)
        return replace(self, axes={**self.axes, **dict.fromkeys(refused)}, mixed=self.mixed | refused)


def survey(model: nn.Module, inputs: Inputs) -> Survey:
    """Find a network's local fields in runs of two samples and of three."""
    samples = check_inputs(inputs)
    if samples == 0:
        raise ValueError("`inputs` must hold at least one sample, got none.")
    chosen = evenly_spaced(samples, 3) if samples > 2 else torch.arange(3).clamp(max=samples - 1)
    sites: list[Site] = []
    two = Tracer(model, 2, lambda site: None, axes=None)
    with trying(inputs), traced(two, model, take(inputs, chosen[:2])):
        pass
    three = Tracer(model, 3, sites.append, axes=None)
    with traced(three, model, take(inputs, chosen)) as (output, logits):
        probabilities = logits is not output
    axes, unclear = _axes(two.seen, three.seen)
    axes |= dict.fromkeys(two.refused | three.refused | three.idle | three.gates.quiet(three.whole))
    return Survey(
        sites=tuple((site.name, site.key) for site in sites),
        axes=axes,
        probabilities=probabilities,
        before_pool=frozenset(site.key for site in sites[: three.pooled]),
        mixed=frozenset(unclear),
        hidden={reason: sorted(names) for reason, names in three.hidden.items()},
        unknown=frozenset(three.gates.unknown()),
    )


def _axes(two: Mapping[Key, Tensor], three: Mapping[Key, Tensor]) -> tuple[dict[Key, SampleAxis | None], set[Key]]:
    """The axes of all tensors that are in both runs, and the calls whose samples cannot be told apart."""
    axes: dict[Key, SampleAxis | None] = {}
    unclear: set[Key] = set()
    for key in two.keys() & three.keys():
        axis, constant = None, False
        try:
            axis = choose_axis(candidate_axes(two[key], three[key]), two[key], three[key])
            constant = axis is None and torch.equal(two[key], three[key])
        except ValueError:
            pass
        if axis is None and not constant and key[0] in ("call", "gate"):
            unclear.add(key)
        # What is the same in both runs may still hold one sample: later runs show it.
        if not constant:
            axes[key] = axis
    return axes, unclear
