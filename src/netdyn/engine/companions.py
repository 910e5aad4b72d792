"""Measure all companions in one pass of the probe at most and one over the weights; a failing one costs itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from netdyn._utils.trees import Inputs
from netdyn._utils.user_code import is_out_of_memory
from netdyn.companions.bn_drift import measure_drift
from netdyn.companions.dimension import effective_dimension, effective_rank
from netdyn.companions.gates import entropy_of_gates
from netdyn.companions.graph_persistence import deep_graph_persistence
from netdyn.companions.localisation import localisation
from netdyn.companions.persistence import neural_persistence, weight_variance
from netdyn.companions.result import Companions
from netdyn.companions.strength import fluctuation, node_strength
from netdyn.companions.weighted import weight_of, weighted_layers
from netdyn.engine.config import Config
from netdyn.probes.batchnorm import USUAL_BATCH, shuffled_batches
from netdyn.probes.evaluator import Evaluator
from netdyn.tracing.fields import Choice, choose, read
from netdyn.tracing.survey import survey

#: Most inputs and outputs of a layer whose spanning tree is built: about a second.
MOST_VERTICES = 20_000
#: What the local fields of a layer give.
OF_FIELDS = ("gate_entropy", "effective_dimension", "effective_rank")


class CompanionReader:
    """The companions of one evaluation.

    :meth:`see` takes the local fields, in the run that another measure makes or in one of :meth:`run`; then
    :meth:`finish` adds the rest. ``failures`` are the companions that could not be measured.
    """

    def __init__(self, evaluator: Evaluator, config: Config) -> None:
        self.evaluator, self.config = evaluator, config
        self.begin()

    def begin(self) -> None:
        """Forget what has been seen: the layers are read anew."""
        self.found = Companions()
        self.failures: dict[str, Exception] = {}
        self._parts: dict[str, list[Tensor]] = {}

    def see(self, name: str, fields: Tensor) -> None:
        """Take a layer's local fields of some samples, ``[samples, units]`` or ``[samples, positions, units]``."""
        own = self._parts.setdefault(name, [])
        own.append(self._sampled(fields.flatten(1)))
        if sum(map(len, own)) == self.evaluator.samples:
            self._reduce(name, torch.cat(self._parts.pop(name)))

    def run(self, inputs: Inputs) -> Any:
        """The network's outputs, in a run that nothing else reads."""
        try:
            return read(self.evaluator.model, inputs, lambda name, fields, _: self.see(name, fields), self._choice)[0]
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self.failures |= dict.fromkeys(OF_FIELDS, error)
            return self.evaluator.model(inputs)

    def finish(self, maps: Tensor | None) -> Companions:
        """Add those of weights, of normalisations, and of characteristic maps if there are any."""
        self._of_weights()
        self._guarded("bn_drift", self._of_normalisations)
        if maps is not None:
            self._guarded("map_localisation", partial(self._of_maps, maps))
        # Each process has the local fields of its layers; of all else the first one's rounding counts.
        gathered = self.evaluator.processes.gather(lambda: (self.found, list(self.failures)))
        found = gathered[0][0]
        for other, failures in gathered:
            for name, values in other.layers.items():
                found.layers[name] = values | found.layers.get(name, {})
            for name, units in other.units.items():
                found.units[name] = units | found.units.get(name, {})
            for name in failures:
                self.failures.setdefault(name, RuntimeError("It failed on another process."))
        for name in self.failures:
            found.layers.pop(name, None)
        return found

    @cached_property
    def _choice(self) -> Choice:
        """The layers to read; none if the network has none."""
        found = survey(self.evaluator.model, self.evaluator.inputs)
        try:
            return choose(self.evaluator.model, found, self.config.layers)
        except ValueError as error:
            self.found.left_out.update(dict.fromkeys(OF_FIELDS, str(error)))
            return Choice(axes=found.axes)

    def _guarded(self, name: str, work: Callable[[], object]) -> None:
        """Do some work of a companion. If it fails, it costs this one alone; a lack of memory is for the caller."""
        try:
            work()
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self.failures.setdefault(name, error)

    def _sampled(self, fields: Tensor) -> Tensor:
        """A copy of the fields, which the network may overwrite; of many units the same seeded choice in each batch."""
        units, most = fields.shape[1], self.config.max_units
        if units <= most:
            return fields.clone()
        generator = torch.Generator().manual_seed(self.config.seed)
        return fields[:, torch.randperm(units, generator=generator)[:most].sort().values.to(fields.device)]

    def _reduce(self, name: str, fields: Tensor) -> None:
        found = self.found

        def gates() -> None:
            entropy = entropy_of_gates(fields)
            found.layers.setdefault("gate_entropy", {})[name] = float(entropy.nanmean())
            found.units.setdefault("gate_entropies", {})[name] = entropy.cpu()

        def dimension() -> None:
            found.layers.setdefault("effective_dimension", {})[name] = effective_dimension(fields)

        def rank() -> None:
            # No more samples than units: the rank would be the probe's.
            if len(fields) > fields.shape[1]:
                found.layers.setdefault("effective_rank", {})[name] = effective_rank(fields)

        for companion, work in zip(OF_FIELDS, (gates, dimension, rank), strict=True):
            self._guarded(companion, work)

    def _of_normalisations(self) -> None:
        evaluator = self.evaluator
        # Statistics of smaller batches than training's would be others.
        size = self.config.batch_size and max(self.config.batch_size, USUAL_BATCH)

        def batches() -> Iterator[Inputs]:
            for index in shuffled_batches(evaluator.samples, size, self.config.seed):
                evaluator.passed += len(index)
                yield evaluator.batch(index)[0]

        if evaluator.samples > 1:  # one sample has no statistics
            self.found.layers["bn_drift"] = measure_drift(evaluator.model, batches())

    def _of_maps(self, maps: Tensor) -> None:
        self.found.network["map_localisation"] = float(localisation(maps).nanmean())

    def _of_weights(self) -> None:
        model, found = self.evaluator.model, self.found
        layers = weighted_layers(model)

        def strengths() -> None:
            strength = node_strength(model)
            found.layers["node_strength"] = {name: float(own.mean()) for name, own in strength.items()}
            found.layers["layer_fluctuation"] = {name: fluctuation(own) for name, own in strength.items()}
            found.units["node_strengths"] = {name: own.cpu() for name, own in strength.items()}

        def persistence() -> None:
            weights = {name: weight_of(module) for name, module in layers.items()}
            large = [name for name, weight in weights.items() if sum(weight.flatten(1).shape) > MOST_VERTICES]
            if large:
                found.left_out["neural_persistence"] = f"{large} have more than {MOST_VERTICES:,} inputs and outputs"
            found.layers["weight_variance"] = {name: weight_variance(weight) for name, weight in weights.items()}
            found.layers["neural_persistence"] = {
                name: neural_persistence(weight) for name, weight in weights.items() if name not in large
            }

        def paths() -> None:
            try:
                found.network["deep_graph_persistence"] = deep_graph_persistence(model)
            except ValueError as error:
                # It is defined for chains of linear layers alone, and takes long in wide ones.
                found.left_out["deep_graph_persistence"] = str(error)

        def first_layer() -> None:
            for name, module in list(layers.items())[:1]:
                found.layers["localisation"] = {name: float(localisation(weight_of(module)).nanmean())}

        self._guarded("node_strength", strengths)
        self._guarded("neural_persistence", persistence)
        self._guarded("deep_graph_persistence", paths)
        self._guarded("localisation", first_layer)
