"""The results of one evaluation: to print, to log, to draw or to save."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from netdyn._utils import checks
from netdyn._utils.drawing import available
from netdyn.basins.change import Change
from netdyn.basins.coverage import Covered
from netdyn.basins.result import BasinResult
from netdyn.companions.result import Companions
from netdyn.linear.characteristic import Subnetwork
from netdyn.loggers.find import destination
from netdyn.modes.phases import Phase, phase
from netdyn.probes.guessing import is_guessed
from netdyn.report.trend import Moment
from netdyn.tags import VERDICT, Detail, is_sent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from netdyn.report.verdict import Verdict


#: Fields of a layer's report that are logged as ``modes/<name>/<layer>``.
MODES = (
    "opt_fraction",
    "npt_fraction",
    "order_z",
    "opt_chance",
    "positive_fraction",
    "order_mean",
    "dead_fraction",
    "constant_fraction",
    "rpd_gradient",
    "transfer_order",
)


@dataclass(frozen=True)
class LayerReport:
    """The numbers of one layer; NaN for what was not measured or is not defined.

    Attributes:
        name: The layer's name.
        units: Number of units.
        sampled: Number of units measured.
        opt_fraction: Share of order-preserving units among the wired, live ones.
        npt_fraction: Share of the other units among the wired, live ones.
        order_z: z value of the layer's own test of order, see :func:`netdyn.functional.order_test`; NaN with fewer
            than five classes, like the next.
        opt_chance: What ``opt_fraction`` exceeds by chance in 5 % of cases.
        positive_fraction: Share of units with a positive order index among the live, wired ones.
        order_mean: Mean order index of the live, wired units.
        dead_fraction: Share of units whose activation has the same output for every sample, among those whose local
            field is not constant.
        constant_fraction: Share of units with a constant local field.
        unwired_fraction: Share of units without a pathway to the logits.
        rpd_gradient: Slope of the rank probability distribution.
        transfer_order: Share of pairs of samples whose order the activation keeps, mean over units.
        affine_defect: Share of the pathway that depends on the sample.
        tail_accuracy: Accuracy when every activation from this layer on is the identity.
        tail_change: That accuracy minus the network's, on the same samples.
        tail_error: Standard error of ``tail_change``, from the samples' paired answers.
        linear_share: Squared correlation of the logits with those of that linear tail.
        unreached: Why the layer's wiring is unknown: ``"detached"`` (the network stops gradients on their way to the
            outputs) or ``"untracked"`` (it runs without gradients); or ``"elsewhere"``: its fields do not have the
            positions of the labels. Else empty.
        rule: The rule that separated OPT from NPT: ``"sign-flip"``, ``"false-discovery"`` or ``"none"``.
        left_out: Number of samples left out of the modes, because the layer's local fields are not finite for them.
        tied_fraction: Share of neighbours in rank whose local fields are equal, mean over units whose field varies.
        order_index: Order index of each measured unit ``[sampled]``.
        alignment: Alignment of each measured unit ``[sampled]``.
        distribution: The layer's rank probability distribution ``[bins]``, mean over classes; None if not asked for.
    """

    name: str
    units: int
    sampled: int
    opt_fraction: float = math.nan
    npt_fraction: float = math.nan
    order_z: float = math.nan
    opt_chance: float = math.nan
    positive_fraction: float = math.nan
    order_mean: float = math.nan
    dead_fraction: float = math.nan
    constant_fraction: float = math.nan
    unwired_fraction: float = math.nan
    rpd_gradient: float = math.nan
    transfer_order: float = math.nan
    affine_defect: float = math.nan
    tail_accuracy: float = math.nan
    tail_change: float = math.nan
    tail_error: float = math.nan
    linear_share: float = math.nan
    unreached: str = ""
    rule: str = "none"
    left_out: int = 0
    tied_fraction: float = math.nan
    order_index: Tensor = field(default_factory=lambda: torch.zeros(0), repr=False)
    alignment: Tensor = field(default_factory=lambda: torch.zeros(0), repr=False)
    distribution: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class Report:
    """The results of :func:`netdyn.diagnose`. Two reports are equal if all of their numbers are, NaN included.

    Attributes:
        layers: The layers, in order of execution.
        sample_basin: The basin in sample space; None if it was not measured.
        weight_basin: The basin in weight space; None if it was not measured.
        sample_change: How the sample basin's radius has changed since the last evaluation, which a monitor knows.
        weight_change: The same for the weight basin.
        accuracy: Accuracy on the probe; NaN if the network predicts numbers.
        val_accuracy: Accuracy on the validation probe; None without one, or if the network predicts numbers.
        samples: Number of samples in the probe.
        val_samples: Number of samples in the validation probe; 0 without one.
        num_classes: Number of classes; 1 without classes.
        alpha: Share of OPT units that an untrained network is allowed to show.
        max_classes: Most classes whose radii are logged.
        guess: The accuracy of guessing on this probe: 1/K, or the share of the largest class if that is more.
        functional_depth: The first layer from which on the network acts linearly, see
            :func:`netdyn.functional.functional_depth`.
        batchnorm_gap: Accuracy with batch statistics minus accuracy with running statistics, on the validation probe if
            there is one.
        batchnorm_train_gap: The same on the training probe.
        coverage: How far the answers for training samples reach, see :func:`netdyn.functional.coverage`; None without a
            validation probe.
        characteristic_maps: How each logit weighs the input ``[classes, *input shape]``; None if not measured.
        notes: How the targets have been read, where that is not obvious.
        subnetwork: The units of the first layer that contribute most to each logit; None if not measured.
        companions: The quantities of related work, see ``docs/companions.md``; None if not measured.
        finite: Share of samples for which all outputs are finite, among those that hold no NaN or inf themselves.
        loss: Mean cross-entropy on the same samples; NaN unless the network has class labels and one logit per class.
        step: The step of a monitor's evaluation; None without a monitor.
        trend: The earlier evaluations of the same run, which a monitor knows, in a few numbers each.
        measured: How the report was made, in words: versions, seed, seconds. Comparisons of reports leave it out.
    """

    layers: tuple[LayerReport, ...]
    sample_basin: BasinResult | None
    weight_basin: BasinResult | None
    accuracy: float
    val_accuracy: float | None
    samples: int
    num_classes: int
    alpha: float
    max_classes: int = 100
    guess: float = 0.0
    functional_depth: float = math.nan
    batchnorm_gap: float = math.nan
    batchnorm_train_gap: float = math.nan
    coverage: Covered | None = None
    notes: tuple[str, ...] = ()
    sample_change: Change | None = None
    weight_change: Change | None = None
    characteristic_maps: Tensor | None = field(default=None, repr=False)
    subnetwork: Subnetwork | None = field(default=None, repr=False)
    companions: Companions | None = field(default=None, repr=False)
    val_samples: int = 0
    finite: float = 1.0
    loss: float = math.nan
    step: int | None = None
    trend: tuple[Moment, ...] = field(default=(), repr=False)
    measured: dict[str, str] = field(default_factory=dict, repr=False)

    def __eq__(self, other: object) -> bool:
        from netdyn.report.storage import encoded

        if not isinstance(other, Report):
            return NotImplemented
        return bool(encoded(replace(self, measured={})) == encoded(replace(other, measured={})))

    def __hash__(self) -> int:
        return hash((self.samples, self.num_classes, tuple(layer.name for layer in self.layers)))

    @property
    def untrained(self) -> bool:
        """Whether guessing could explain the accuracy: of such a network nothing is said about its layers."""
        return is_guessed(self.accuracy, self.guess, self.num_classes, self.samples)

    @property
    def phase(self) -> Phase:
        """The learning phase, from the layers' RPD gradients; NaN if these were not measured, or without classes."""
        gradients = [layer.rpd_gradient for layer in self.layers]
        return phase(gradients, self.num_classes) if self.num_classes > 1 else phase([], 2)

    def scalars(self, detail: Detail = "full") -> dict[str, float]:
        """Tag → finite value, as a monitor logs them; an infinite radius is replaced by the highest noise level.

        Args:
            detail: ``"summary"``, ``"layers"`` (four more per layer) or ``"full"``, see :mod:`netdyn.tags`.

        Raises:
            ValueError: If ``detail`` is another word.
        """
        checks.choice("detail", detail, get_args(Detail))
        val_accuracy = math.nan if self.val_accuracy is None else self.val_accuracy
        values = {"probe/accuracy": self.accuracy, "probe/val_accuracy": val_accuracy}
        for layer in self.layers:
            for name in MODES:
                values[f"modes/{name}/{layer.name}"] = getattr(layer, name)
            values[f"linear/tail_accuracy/{layer.name}"] = layer.tail_accuracy
            values[f"linear/share/{layer.name}"] = layer.linear_share
            values[f"linear/affine_defect/{layer.name}"] = layer.affine_defect
        known = [layer.opt_fraction for layer in self.layers if not math.isnan(layer.opt_fraction)]
        values["modes/opt_mean"] = sum(known) / len(known) if known else math.nan
        values["modes/dead_max"] = self.dead_max
        values["linear/functional_depth"] = self.functional_depth
        values |= {f"phase/{name}": value for name, value in vars(self.phase).items()}
        values |= {"batchnorm/gap": self.batchnorm_gap, "batchnorm/train_gap": self.batchnorm_train_gap}
        for space, basin in self._basins():
            values |= _basin_scalars(f"basin/{space}", basin, self.max_classes)
        for space, change in (("sample", self.sample_change), ("weight", self.weight_change)):
            if change is not None:
                tags = ("change", "change_low", "change_high")
                values |= {f"basin/{space}/{tag}": value for tag, value in zip(tags, change, strict=True)}
        if self.coverage is not None:
            values |= {f"coverage/{name}": value for name, value in self.coverage._asdict().items()}
        if self.companions is not None:
            values |= self.companions.scalars()
        return {tag: value for tag, value in values.items() if math.isfinite(value) and is_sent(tag, detail)}

    def histograms(self) -> dict[str, Tensor]:
        """Tag → finite values, float32."""
        values: dict[str, Tensor] = {}
        for layer in self.layers:
            values[f"modes/order_index/{layer.name}"] = layer.order_index
            values[f"modes/alignment/{layer.name}"] = layer.alignment
        for space, basin in self._basins():
            values[f"basin/{space}/radii"] = basin.spread().log10()
        if self.companions is not None:
            values |= self.companions.histograms()
        shown = {tag: value[value.isfinite()].float().cpu() for tag, value in values.items()}
        return {tag: value for tag, value in shown.items() if len(value)}

    def figures(self) -> dict[str, Figure]:
        """Tag → matplotlib figure; needs the extra ``plot``.

        Those of linear tails, of accuracy under noise and of single units show what has been learnt: an untrained
        network has none of them.
        """
        from netdyn.report.figures import curves, maps

        drawn: dict[str, Figure] = {}
        densities = {layer.name: layer.distribution for layer in self.layers if layer.distribution is not None}
        if densities:
            tied = {layer.name: layer.tied_fraction for layer in self.layers}
            drawn["modes/rpd"] = curves.rank_distributions(densities, tied)
        tails = {layer.name: layer.tail_accuracy for layer in self.layers if not math.isnan(layer.tail_accuracy)}
        learnt = not self.untrained
        if tails and learnt:
            drawn["linear/tail"] = curves.tail(tails, self.accuracy, self.functional_depth)
        if (basin := self.sample_basin) is not None and len(basin.curve.sigma) > 1 and learnt:
            drawn["basin/curves"] = _curves(basin)
        if self.characteristic_maps is not None:
            drawn["wpa/characteristic_maps"] = maps.characteristic_maps(self.characteristic_maps)
        if (part := self.subnetwork) is not None and learnt:
            drawn["wpa/subnetwork"] = maps.subnetwork(part.units, part.shares, part.maps)
        return drawn

    def plot(self, tag: str = "modes/rpd") -> Figure:
        """One figure, by its tag; a KeyError if its numbers were not measured."""
        drawn = self.figures()
        if tag not in drawn:
            raise KeyError(f"`tag` must be one of {', '.join(map(repr, drawn))}, got {tag!r}.")
        return drawn[tag]

    @property
    def verdict(self) -> Verdict:
        """How the training stands; docs/evidence.md gives the rules and how often they are right."""
        from netdyn.report.verdict import verdict

        return verdict(self, self.trend)

    @property
    def dead_max(self) -> float:
        """The largest share of dead units of a layer; NaN if no layer has one."""
        return max((x.dead_fraction for x in self.layers if not math.isnan(x.dead_fraction)), default=math.nan)

    @property
    def moment(self) -> Moment:
        """What later reports of the same run keep of this one."""
        sample, weight = self.sample_basin, self.weight_basin
        return Moment(
            step=-1 if self.step is None else self.step,
            accuracy=self.accuracy,
            val_accuracy=math.nan if self.val_accuracy is None else self.val_accuracy,
            sample_radius=math.nan if sample is None else sample.radius,
            weight_radius=math.nan if weight is None else weight.radius,
            loss=self.loss,
            train_gap=self.batchnorm_train_gap,
        )

    def log(self, logger: Any, step: int, *, detail: Detail = "layers", prefix: str = "") -> None:
        """Send the report to a logger, as a monitor does.

        Args:
            logger: A Lightning logger, a TensorBoard ``SummaryWriter``, a W&B run, or a folder for event files.
            step: The step to log it at.
            detail: Which scalars to send, as in :meth:`scalars`.
            prefix: Prefix of every tag, followed by a slash.

        Raises:
            TypeError: If ``logger`` is none of these.
        """
        there, before = destination(logger, "logger"), f"{prefix}/" if prefix else ""
        there.scalars({before + tag: value for tag, value in self.scalars(detail).items()}, step)
        there.text(before + VERDICT, [f"{self.verdict}", *self.findings()], step)
        there.histograms({before + tag: values for tag, values in self.histograms().items()}, step)
        if there.shows_figures and available():
            there.figures({before + tag: figure for tag, figure in self.figures().items()}, step)
        there.close()

    def findings(self) -> list[str]:
        """What stands out, one sentence per finding; docs/findings.md gives the rule behind each."""
        from netdyn.report.findings import findings

        return findings(self)

    def to_dict(self, arrays: bool = False) -> dict[str, Any]:
        """The report as plain numbers, strings, lists and dicts, ready for JSON; NaN and inf become None.

        Args:
            arrays: Also what is a tensor, as nested lists: numbers of single units, rays and classes.
        """

        def plain(fields: dict[str, Any]) -> dict[str, Any]:
            kept = {name: value for name, value in fields.items() if name not in ("curve", "influences")}
            return {n: _plain(value) for n, value in kept.items() if arrays or not isinstance(value, Tensor)}

        changes = {"sample_change": self.sample_change, "weight_change": self.weight_change}
        companions = self.companions
        units = companions.units if companions is not None and arrays else {}
        own = ["accuracy", "val_accuracy", "samples", "num_classes", "alpha", "guess", "functional_depth"]
        own += ["batchnorm_gap", "batchnorm_train_gap", "val_samples", "finite", "loss", "step"]
        return (
            {name: _plain(getattr(self, name)) for name in own}
            | {"phase": _plain(vars(self.phase)), "verdict": _plain(vars(self.verdict))}
            | {"trend": [_plain(moment._asdict()) for moment in self.trend]}
            | {"layers": [plain(vars(layer)) for layer in self.layers], "findings": self.findings()}
            | {"coverage": None if self.coverage is None else _plain(self.coverage._asdict())}
            | {name: None if change is None else _plain(change._asdict()) for name, change in changes.items()}
            | {"companions": None if companions is None else _plain(vars(companions) | {"units": units})}
            | {f"{space}_basin": plain(vars(basin)) for space, basin in self._basins()}
        )

    def to_json(self, arrays: bool = False) -> str:
        """:meth:`to_dict` as JSON."""
        return json.dumps(self.to_dict(arrays))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the whole report to a JSON file, tensors included.

        Args:
            path: The file; one that exists is replaced.

        Examples:
            >>> import tempfile
            >>> report = Report((), None, None, 0.5, None, samples=4, num_classes=2, alpha=0.05)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     report.save(f"{folder}/report.json")
            ...     Report.load(f"{folder}/report.json") == report
            True
        """
        from netdyn.report.storage import save

        save(self, path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Report:
        """Read a report that :meth:`save` has written. The file is checked; nothing in it is run.

        Args:
            path: The file.

        Returns:
            The report, equal to the one that was saved; tensors are on the CPU.

        Raises:
            ValueError: If the file holds something else; the message names the first field that is wrong.
        """
        from netdyn.report.storage import load

        return load(path)

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write the report as one HTML file, to read, to print and to send: it loads nothing from elsewhere.

        It holds the verdict, the findings with their rules, the layers, the run so far, the figures (if matplotlib is
        installed), a glossary, and how it was measured.

        Args:
            path: The file; one that exists is replaced.
        """
        from netdyn.report.page import write

        write(self, path)

    def __str__(self) -> str:
        from netdyn.report.text import text

        return text(self)

    def _repr_html_(self) -> str:
        from netdyn.report.html import html

        return html(self)

    def _basins(self) -> Iterator[tuple[str, BasinResult]]:
        for space, basin in (("sample", self.sample_basin), ("weight", self.weight_basin)):
            if basin is not None:
                yield space, basin


def _basin_scalars(prefix: str, basin: BasinResult, max_classes: int) -> dict[str, float]:
    def shown(radius: float) -> float:
        return basin.high if math.isinf(radius) else radius

    values = {
        f"{prefix}/radius": shown(basin.radius),
        f"{prefix}/low": shown(basin.interval[0]),
        f"{prefix}/high": shown(basin.interval[1]),
        f"{prefix}/censored": basin.censored,
    }
    classes = [] if basin.per_class is None or prefix != "basin/sample" else basin.per_class[:max_classes].tolist()
    values |= {f"{prefix}/class_radius/{k}": shown(radius) for k, radius in enumerate(classes)}
    values |= {f"{prefix}/layer_radius/{name}": shown(radius) for name, radius in (basin.per_layer or {}).items()}
    return values


def _curves(basin: BasinResult) -> Figure:
    """Accuracy against noise, over all samples and per class."""
    from netdyn.report.basin_findings import class_radius
    from netdyn.report.figures import curves

    sigma = basin.curve.sigma
    none = torch.full_like(sigma, math.nan)
    found = [none if curve is None else curve.at(sigma) for curve in basin.class_curves]
    classes, whole = torch.stack(found) if found else None, basin.curve.at(sigma)
    radii = [f"class {k}: {class_radius(basin, k)}" for k in range(len(found))]
    return curves.basin_curves(sigma, whole, classes, basin.accuracy, basin.radius, basin.interval, names=radii)


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
