"""Everything about one network on one probe, in one call."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from netdyn import _checks, weight_rays
from netdyn import rays as sample_rays
from netdyn.adapter import Adapter
from netdyn.batches import Inputs, blocks, finite
from netdyn.crew import Crew
from netdyn.criteria import Criterion, checked
from netdyn.findings import findings
from netdyn.functional import check_basin, prepare_walk, warn_of_defects
from netdyn.isolation import isolated, kept
from netdyn.linearize import LinearMap, substitute
from netdyn.modes import mode_shares, order_alignment, order_index, transfer_order
from netdyn.radii import BasinResult
from netdyn.ranks import class_tuning, constant_units
from netdyn.rays import Walk
from netdyn.sites import Choice, choose, discover, read

Measure = Literal["modes", "sample_basin", "weight_basin"]
MEASURES: tuple[Measure, ...] = ("modes", "sample_basin", "weight_basin")


@dataclass(frozen=True)
class LayerReport:
    """What was measured of one layer.

    Attributes:
        name: The layer's name.
        units: Number of its units, of which ``sampled`` were measured.
        sampled: Number of units measured.
        opt_fraction: Share of order-preserving units among wired, live ones; NaN where no rule applies.
        npt_fraction: Share of the others among wired, live ones.
        constant_fraction: Share of units with a constant local field.
        unwired_fraction: Share of units without any pathway to the logits.
        rpd_gradient: Slope of the rank probability distribution.
        transfer_order: Share of pairs of samples whose order the activation keeps, mean over units.
        affine_defect: How much of the pathway depends on the sample.
        rule: The rule that told OPT from NPT: ``"sign-flip"``, ``"mirror"`` or ``"none"``.
        order_index: Per measured unit ``[sampled]``.
        alignment: Per measured unit ``[sampled]``.
    """

    name: str
    units: int
    sampled: int
    opt_fraction: float
    npt_fraction: float
    constant_fraction: float
    unwired_fraction: float
    rpd_gradient: float
    transfer_order: float
    affine_defect: float
    rule: str
    order_index: Tensor = field(repr=False)
    alignment: Tensor = field(repr=False)


@dataclass(frozen=True)
class Report:
    """What :func:`diagnose` measured.

    Attributes:
        layers: The layers, in order of execution.
        sample_basin: The basin in sample space, None if it was not asked for.
        weight_basin: The basin in weight space, None if it was not asked for.
        accuracy: Accuracy on the probe.
        val_accuracy: Accuracy on the validation probe, None without one.
        samples: Number of samples in the probe.
        num_classes: Number of classes.
        alpha: Share of OPT units that an untrained network is allowed to show.
    """

    layers: tuple[LayerReport, ...]
    sample_basin: BasinResult | None
    weight_basin: BasinResult | None
    accuracy: float
    val_accuracy: float | None
    samples: int
    num_classes: int
    alpha: float

    def scalars(self) -> dict[str, float]:
        """Tag → value, exactly as the callback logs them: finite values only.

        An infinite radius is given as the highest noise level visited; what is NaN is left out.
        """
        values: dict[str, float] = {"probe/accuracy": self.accuracy}
        if self.val_accuracy is not None:
            values["probe/val_accuracy"] = self.val_accuracy
        for layer in self.layers:
            for name in ("opt_fraction", "npt_fraction", "constant_fraction", "rpd_gradient", "transfer_order"):
                values[f"modes/{name}/{layer.name}"] = getattr(layer, name)
            values[f"linear/affine_defect/{layer.name}"] = layer.affine_defect
        for space, basin in self._basins():
            values |= _basin_scalars(f"basin/{space}", basin)
        if self.sample_basin is not None:
            values["basin/sample/reentry"] = self.sample_basin.reentry
        return {tag: value for tag, value in values.items() if math.isfinite(value)}

    def histograms(self) -> dict[str, Tensor]:
        """Tag → finite values, float32."""
        values: dict[str, Tensor] = {}
        for layer in self.layers:
            values[f"modes/order_index/{layer.name}"] = layer.order_index
            values[f"modes/alignment/{layer.name}"] = layer.alignment
        for space, basin in self._basins():
            values[f"basin/{space}/radii"] = basin.radii.log10()
        shown = {tag: value[value.isfinite()].float().cpu() for tag, value in values.items()}
        return {tag: value for tag, value in shown.items() if len(value)}

    def findings(self) -> list[str]:
        """What stands out, a sentence each; :mod:`netdyn.findings` has the rule behind every one."""
        return findings(self.layers, self.sample_basin, self.alpha)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts (JSON); what is not finite is None."""
        layers = [{name: _plain(getattr(layer, name)) for name in layer.__dataclass_fields__} for layer in self.layers]
        basins = {
            f"{space}_basin": {
                name: _plain(getattr(basin, name)) for name in basin.__dataclass_fields__ if name != "curve"
            }
            for space, basin in self._basins()
        }
        plain = ("accuracy", "val_accuracy", "samples", "num_classes", "alpha")
        return (
            {name: _plain(getattr(self, name)) for name in plain}
            | {"layers": layers, "findings": self.findings()}
            | basins
        )

    def to_json(self) -> str:
        """:meth:`to_dict` as JSON."""
        return json.dumps(self.to_dict())

    def __str__(self) -> str:
        lines = [f"probe: {self.samples} samples, {self.num_classes} classes, accuracy {self.accuracy:.3f}"]
        if self.val_accuracy is not None:
            lines[0] += f" (validation {self.val_accuracy:.3f})"
        if self.layers:
            width = max(5, *(len(layer.name) for layer in self.layers))
            lines.append(f"{'layer':<{width}}  units    OPT    NPT  constant  gradient  transfer")
            lines += [
                f"{layer.name:<{width}} {layer.units:>6} {layer.opt_fraction:>6.3f} {layer.npt_fraction:>6.3f} "
                f"{layer.constant_fraction:>9.3f} {layer.rpd_gradient:>9.3f} {layer.transfer_order:>9.3f}"
                for layer in self.layers
            ]
        for space, basin in self._basins():
            low, high = basin.interval
            lines.append(
                f"{space} basin: radius {basin.radius:.3g} ({basin.level:.0%} interval {low:.3g} to {high:.3g}) "
                f"at accuracy {basin.accuracy:.2f}"
            )
        return "\n".join(lines + [f"- {sentence}" for sentence in self.findings()])

    def _basins(self) -> Iterator[tuple[str, BasinResult]]:
        if self.sample_basin is not None:
            yield "sample", self.sample_basin
        if self.weight_basin is not None:
            yield "weight", self.weight_basin


def _basin_scalars(prefix: str, basin: BasinResult) -> dict[str, float]:
    def shown(radius: float) -> float:
        return basin.high if math.isinf(radius) else radius

    values = {
        f"{prefix}/radius": shown(basin.radius),
        f"{prefix}/low": shown(basin.interval[0]),
        f"{prefix}/high": shown(basin.interval[1]),
        f"{prefix}/censored": basin.censored,
    }
    values |= {f"{prefix}/class_radius/{k}": shown(radius) for k, radius in enumerate(basin.per_class.tolist())}
    values |= {f"{prefix}/layer_radius/{name}": shown(radius) for name, radius in (basin.per_layer or {}).items()}
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


def diagnose(
    model: nn.Module,
    inputs: Inputs,
    target: Tensor,
    *,
    val_inputs: Inputs = None,
    val_target: Tensor | None = None,
    num_classes: int | None = None,
    progress: bool | None = None,
    measure: Sequence[Measure] = MEASURES,
    layers: Sequence[str] | None = None,
    max_units: int = 4096,
    alpha: float = 0.05,
    accuracy: float | None = None,
    sample_rays: int = 1,
    weight_rays: int = 8,
    weight_layers: Sequence[str] | Literal["each"] | None = None,
    normalization: Literal["layer", "global"] = "layer",
    low: float = 1e-3,
    high: float = 1e1,
    rel_tol: float = 0.05,
    criterion: Criterion | None = None,
    forward: Callable[[Any, Inputs], Any] | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    crew: Crew | None = None,
) -> Report:
    """Measure a network, trained or not, on one probe: neuron modes layer by layer, and both attraction basins.

    The model is left as it was found, and so is every random generator.

    Args:
        model: Any eager PyTorch module.
        inputs: The probe's inputs: a tensor, or a sequence or mapping of tensors, samples first.
        target: Class labels ``[samples]``.
        val_inputs: Inputs of a held-out probe, for its accuracy.
        val_target: Its labels.
        num_classes: Number of classes, checked against the model's output; None: as many as it has.
        progress: Show a progress bar; None: where work takes over two seconds and a person is watching.
        measure: What to measure: ``"modes"``, ``"sample_basin"``, ``"weight_basin"``.
        layers: Names or globs of the layers to read, as in :func:`netdyn.functional.local_fields`.
        max_units: Units measured a layer; of larger layers this many, the same at every call.
        alpha: Share of OPT units that an untrained network is allowed to show.
        accuracy: The accuracy that defines the radii; None: 0.5, or 0.75 for two classes.
        sample_rays: Rays a sample.
        weight_rays: Rays in weight space.
        weight_layers: Parameters to disturb, or ``"each"``, as in :func:`netdyn.functional.weight_basin`.
        normalization: Whose standard deviation the weights' noise is measured in.
        low: Smallest noise level.
        high: Largest noise level.
        rel_tol: Cells of the search end no wider than (1 + rel_tol)².
        criterion: ``criterion(outputs, target)`` → bool ``[samples]``; None: right class.
        forward: ``forward(model, inputs)`` → outputs, where ``model(inputs)`` is not the model.
        batch_size: Samples a forward pass; None: all at once.
        seed: Seed of the noise and of the choice of units.
        crew: Processes that share the work, each with the same network and probe; all of them must call this, and all
            get the same report. None: this process alone.

    Returns:
        A :class:`Report`; print it.

    Warns:
        UserWarning: If the probe lacks classes, the network or the probe hold NaN, or a result is not to be trusted.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument lies outside its range, or the model's output is not ``[samples, classes]``.

    Source:
        P1; the conventions are named with each quantity in :mod:`netdyn.functional`.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 30), nn.ReLU(), nn.Linear(30, 2))
        >>> report = diagnose(net, torch.eye(4).repeat(25, 1), torch.tensor([0, 0, 1, 1]).repeat(25))
        >>> [layer.name for layer in report.layers], "basin/sample/radius" in report.scalars()
        (['0'], True)
    """
    _checks.names("measure", measure)
    _checks.function("forward", forward)
    settings = Settings(
        measure=tuple(measure),
        layers=layers,
        max_units=max_units,
        alpha=alpha,
        accuracy=accuracy,
        sample_rays=sample_rays,
        weight_rays=weight_rays,
        weight_layers=weight_layers,
        normalization=normalization,
        low=low,
        high=high,
        rel_tol=rel_tol,
        criterion=criterion,
        batch_size=batch_size,
        num_classes=num_classes,
        seed=seed,
    )
    network = model if forward is None else Adapter(model, forward)
    if (val_inputs is None) != (val_target is None):
        missing = "val_target" if val_target is None else "val_inputs"
        raise ValueError(f"`val_inputs` and `val_target` must be given together, got None for `{missing}`.")
    held_out = None if val_target is None else (val_inputs, val_target)
    with isolated(model), kept(forward, criterion):
        report = examine(network, (inputs, target), settings, crew or Crew(), progress)
        if held_out is None:
            return report
        return replace(report, val_accuracy=held_out_accuracy(network, held_out, settings))


@dataclass(frozen=True)
class Settings:
    """What to measure and how: the arguments that :func:`diagnose` and the callback share, described there.

    Raises:
        TypeError: If one is of the wrong type.
        ValueError: If one lies outside its range.
    """

    measure: tuple[Measure, ...] = MEASURES
    layers: Sequence[str] | None = None
    max_units: int = 4096
    alpha: float = 0.05
    accuracy: float | None = None
    sample_rays: int = 1
    weight_rays: int = 8
    weight_layers: Sequence[str] | Literal["each"] | None = None
    normalization: Literal["layer", "global"] = "layer"
    low: float = 1e-3
    high: float = 1e1
    rel_tol: float = 0.05
    criterion: Criterion | None = None
    batch_size: int | None = None
    num_classes: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _checks.names("layers", self.layers)
        _checks.names("weight_layers", self.weight_layers, words=("each",))
        _checks.function("criterion", self.criterion)
        for name in self.measure:
            _checks.choice("measure", name, MEASURES)
        _checks.whole("max_units", self.max_units)
        _checks.share("alpha", self.alpha)
        _checks.whole("sample_rays", self.sample_rays)
        _checks.whole("weight_rays", self.weight_rays)
        _checks.choice("normalization", self.normalization, ("layer", "global"))
        if self.batch_size is not None:
            _checks.whole("batch_size", self.batch_size)
        if self.num_classes is not None:
            _checks.whole("num_classes", self.num_classes)
        check_basin(self.accuracy, self.sample_rays, self.low, self.high, self.rel_tol, self.seed)


def held_out_accuracy(network: nn.Module, probe: tuple[Inputs, Tensor], settings: Settings) -> float:
    """Accuracy on a held-out probe of a network that is isolated already."""
    walk = prepare_walk(network, *probe, settings.criterion, settings.batch_size)
    return float(walk.all_right().double().mean())


def examine(
    network: nn.Module, probe: tuple[Inputs, Tensor], settings: Settings, crew: Crew, progress: bool | None
) -> Report:
    """The report on a network that is isolated already; see :func:`diagnose`."""
    grid = check_basin(
        settings.accuracy, settings.sample_rays, settings.low, settings.high, settings.rel_tol, settings.seed
    )
    in_samples = in_weights = None
    basins = set(settings.measure) - {"modes"}
    with _progress(1 + len(basins), progress) as step:
        walk = replace(prepare_walk(network, *probe, settings.criterion, settings.batch_size), crew=crew)
        _check_classes(walk, settings)
        layers, clean = _LayerReader(walk, settings).read()
        step()
        if "sample_basin" in settings.measure:
            in_samples = sample_rays.sample_basin(
                walk,
                grid,
                accuracy=settings.accuracy,
                rays=settings.sample_rays,
                seed=settings.seed,
                clean=clean,
                # Of a probe with a single class it has been said that classes are missing.
                quiet=walk.num_classes > 1 and bool((walk.labels == walk.labels[0]).all()),
            )
            step()
        if "weight_basin" in settings.measure:
            in_weights = weight_rays.weight_basin(
                walk,
                grid,
                accuracy=settings.accuracy,
                rays=settings.weight_rays,
                normalization=settings.normalization,
                layers=settings.weight_layers,
                seed=settings.seed,
                clean=clean,
            )
            step()
    return Report(
        layers=tuple(layers),
        sample_basin=in_samples,
        weight_basin=in_weights,
        accuracy=float(clean.double().mean()),
        val_accuracy=None,
        samples=walk.samples,
        num_classes=walk.num_classes,
        alpha=settings.alpha,
    )


def _check_classes(walk: Walk, settings: Settings) -> None:
    num_classes = settings.num_classes
    if walk.num_classes == 1 and "modes" in settings.measure:
        raise ValueError(
            "`measure` asks for 'modes', which need class labels and one logit a class, got targets of dtype "
            f"{walk.target.dtype}. Leave 'modes' out to measure the basins alone."
        )
    if num_classes is not None and walk.num_classes not in (num_classes, 1):
        raise ValueError(
            f"`num_classes` must be what the model puts out, {walk.num_classes} classes, got {num_classes}."
        )
    if walk.num_classes > 1:
        size = torch.bincount(walk.labels, minlength=walk.num_classes)
        if absent := (size == 0).nonzero()[:, 0].tolist():
            held = walk.num_classes - len(absent)
            _checks.warn(
                f"The probe holds {held} of {walk.num_classes} classes; {absent} are missing and left out of every "
                "mean. Give it at least one sample of each."
            )


class _LayerReader:
    """Reads local fields layer by layer and reduces each to its numbers as it passes.

    With the probe in one batch only one layer's fields are alive at a time; in several batches the sampled units of
    every layer are kept until the last batch.
    """

    def __init__(self, walk: Walk, settings: Settings) -> None:
        self.walk, self.settings = walk, settings
        self.map = LinearMap({}, {})
        self.own: set[str] = set()
        self.parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.units: dict[str, int] = {}
        self.reports: dict[str, LayerReport] = {}

    def read(self) -> tuple[list[LayerReport], Tensor]:
        """The layers' reports (none, if modes are not asked for), and which samples are right."""
        walk = self.walk
        choice = self._map() if "modes" in self.settings.measure else None
        right = torch.empty(walk.samples, dtype=torch.bool, device=walk.target.device)
        lost = 0
        for part in blocks(walk.samples, walk.batch_size):
            inputs, target = walk.batch(part)
            outputs = read(walk.model, inputs, self._add, choice)[0] if choice else walk.model(inputs)
            walk.passed += len(target)
            right[part] = checked(walk.criterion, outputs, target)
            if isinstance(outputs, Tensor):
                lost += int((~outputs.isfinite()).reshape(len(outputs), -1).any(dim=1).sum())
        # Where the inputs are to blame, that has been said.
        _warn_of_nonfinite(lost if finite(walk.inputs) else 0, walk.samples)
        # Every process has seen all fields, and reduced those of its part of the layers.
        parts = walk.crew.share(lambda: (self.reports, right.cpu()))
        merged = {name: report for reports, _ in parts for name, report in reports.items()}
        # A logit rounded otherwise on another device must not let processes take different ways: the first one decides.
        return [merged[name] for name in self.map], parts[0][1].to(right.device)

    def _map(self) -> Choice:
        walk = self.walk
        choice = choose(walk.model, discover(walk.model, walk.inputs), self.settings.layers)
        self.map = substitute(walk.model, walk.inputs, choice)
        warn_of_defects(self.map)
        self.own = set(list(self.map)[walk.crew.part(len(self.map))])
        return choice

    def _add(self, name: str, fields: Tensor, outputs: Tensor) -> None:
        if name not in self.own:
            return
        self.units[name] = fields.shape[1]
        index = self._sampled(fields.shape[1]).to(fields.device)
        parts = self.parts.setdefault(name, [])
        parts.append((fields[:, index], outputs[:, index]))
        if sum(len(part) for part, _ in parts) == self.walk.samples:
            self.reports[name] = self._reduce(name, *(torch.cat(pieces) for pieces in zip(*parts, strict=True)))
            del self.parts[name]

    def _sampled(self, units: int) -> Tensor:
        """The units to measure: all, or a seeded choice that is the same at every call."""
        if units <= self.settings.max_units:
            return torch.arange(units)
        generator = torch.Generator().manual_seed(self.settings.seed)
        return torch.randperm(units, generator=generator)[: self.settings.max_units].sort().values

    def _reduce(self, name: str, fields: Tensor, outputs: Tensor) -> LayerReport:
        walk = self.walk
        pathway = self.map[name][:, self._sampled(self.units[name]).to(fields.device)]
        tuning = class_tuning(fields, walk.labels, walk.num_classes)
        share = torch.bincount(walk.labels, minlength=walk.num_classes).double() / walk.samples
        shares = mode_shares(tuning, pathway, constant_units(fields), share, self.settings.alpha)
        return LayerReport(
            name=name,
            units=self.units[name],
            sampled=fields.shape[1],
            opt_fraction=shares.opt_fraction,
            npt_fraction=shares.npt_fraction,
            constant_fraction=shares.constant_fraction,
            unwired_fraction=shares.unwired_fraction,
            rpd_gradient=shares.rpd_gradient,
            transfer_order=float(transfer_order(fields, outputs).nanmean()),
            affine_defect=self.map.affine_defect[name],
            rule=shares.rule,
            order_index=order_index(tuning, pathway).cpu(),
            alignment=order_alignment(tuning, pathway).cpu(),
        )


def _warn_of_nonfinite(lost: int, samples: int) -> None:
    if lost:
        _checks.warn(
            f"The network puts out NaN or inf for {lost} of {samples} samples, which count as wrong; units whose local "
            "fields hold NaN are left out of the modes."
        )


@contextmanager
def _progress(steps: int, wanted: bool | None) -> Iterator[Callable[[], object]]:
    """A bar that appears after two seconds; tqdm's ``disable=None`` keeps it off where nobody watches."""
    bar = tqdm(total=steps, desc="netdyn", delay=2, leave=False, disable=None if wanted is None else not wanted)
    try:
        yield lambda: bar.update(1)
    finally:
        bar.close()
