"""torchmetrics :class:`~torchmetrics.Metric` classes that run a whole network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from netdyn._utils import checks
from netdyn._utils.trees import Inputs, count
from netdyn.engine.config import Config
from netdyn.engine.evaluate import evaluate
from netdyn.isolation.adapter import isolated_network
from netdyn.linear.tails import linear_tail
from netdyn.metrics.base import SampleMetric, StateMetric
from netdyn.probes.batchnorm import right_answers_gained
from netdyn.probes.criteria import Criterion
from netdyn.probes.probe import Probe
from netdyn.probes.targets import Task
from netdyn.probes.tasks import prepare
from netdyn.tracing.fields import choose, discover


class BatchNormGap(StateMetric):
    """How much batch statistics add to the accuracy, see :func:`netdyn.functional.batchnorm_gap`.

    Each update is a separate probe, which is shuffled and cut into batches; :meth:`compute` gives the mean over all
    samples. So the value depends on which samples come together in an update: make updates large and of mixed classes.

    Args:
        batch_size: Least number of samples in a batch. None: an update is one batch.
        seed: Seed of the shuffle.
        criterion: ``criterion(outputs, target)`` → bool ``[samples]``. None: right class.
        kwargs: Options of :class:`torchmetrics.Metric`.

    Source:
        P1: in deep networks grokking is largely the closing of this gap.

    Examples:
        >>> metric = BatchNormGap()
        >>> net = nn.BatchNorm1d(2, affine=False)  # untrained: mean 0 and variance 1, so that class 1 always wins
        >>> metric.update(net, torch.tensor([[2.0, 10.0], [0.0, 12.0]]), torch.tensor([0, 1]))
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = False
    if TYPE_CHECKING:  # TorchScript reads annotations of classes, and does not know these
        gained: Tensor
        samples: Tensor

    def __init__(
        self, *, batch_size: int | None = None, seed: int = 0, criterion: Criterion | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if batch_size is not None:
            checks.whole("batch_size", batch_size, minimum=2)
        checks.function("criterion", criterion)
        self.batch_size, self.seed, self.criterion = batch_size, checks.whole("seed", seed, minimum=0), criterion
        for name in ("gained", "samples"):
            self.add_state(name, default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, model: nn.Module, inputs: Inputs, target: Tensor) -> None:
        """Run the network both ways; arguments as in :func:`netdyn.functional.batchnorm_gap`.

        Samples of a network without batch normalisation do not count.
        """
        with isolated_network(model) as network:
            evaluator = prepare(network, inputs, target, self.criterion, None)
            gained = right_answers_gained(evaluator, self.batch_size, self.seed)
        if gained is not None:
            self.gained = self.gained + gained.to(self.device)
            self.samples = self.samples + evaluator.samples

    def compute(self) -> Tensor:
        """The difference of the two accuracies, a float64 scalar; NaN without data or batch normalisation."""
        return self.gained / self.samples


class LinearTail(StateMetric):
    """Accuracy of the linear tail of every layer, see :func:`netdyn.functional.linear_tail`.

    Args:
        layers: As in :func:`netdyn.functional.local_fields`. None: all.
        exact: Run every layer's tail. Otherwise each update uses a map averaged over its own samples. If the map
            depends on the sample, the result then depends on how samples are split into updates.
        kwargs: Options of :class:`torchmetrics.Metric`.

    Attributes:
        layers: Names of the layers, in order of execution; empty before the first update, or on a process without data.

    Source:
        P1 asks which layers can be linear.

    Examples:
        >>> metric = LinearTail()
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> metric.update(net, torch.rand(9, 2), torch.arange(9) % 2)
        >>> metric.layers, list(metric.compute().shape)
        (('0', '2'), [2])
    """

    higher_is_better = True
    if TYPE_CHECKING:  # TorchScript reads annotations of classes, and does not know these
        counts: list[Tensor]
        width: Tensor

    def __init__(self, layers: Sequence[str] | None = None, *, exact: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        checks.names("layers", layers)
        self.wanted, self.exact = layers, exact
        self._known: tuple[str, ...] = ()
        self.layers: tuple[str, ...] = ()
        # Right answers of each layer and the number of samples; flat, since without data the layers are not known.
        self.add_state("counts", default=[], dist_reduce_fx="cat")
        self.add_state("width", default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="max")

    def update(self, model: nn.Module, inputs: Inputs, target: Tensor) -> None:
        """Add samples; arguments as in :func:`netdyn.functional.linear_tail`.

        Raises:
            ValueError: If the model has other layers than in the first update.
        """
        accuracies = linear_tail(model, inputs, target, self.wanted, exact=self.exact)
        names = tuple(accuracies)
        self._refuse_others(names, self.layers or self._known)
        self.layers = names
        samples = count(inputs)
        row = [round(accuracy * samples) for accuracy in accuracies.values()] + [samples]
        self.counts.append(torch.tensor(row, dtype=torch.float64, device=self.device))
        self.width = torch.full_like(self.width, len(row))
        self._settle()

    @torch.jit.unused
    def forward(self, model: nn.Module, inputs: Inputs, target: Tensor) -> Any:
        """Update, and the accuracies of this batch alone."""
        # A model that does not fit must be refused before torchmetrics changes the states.
        with isolated_network(model) as network:
            names = choose(network, discover(network, inputs, self.wanted), self.wanted).names
        self._refuse_others(names, self.layers)
        self._known = self.layers
        return super().forward(model, inputs, target)

    @staticmethod
    def _refuse_others(names: tuple[str, ...], known: tuple[str, ...]) -> None:
        if known and set(known) != set(names):
            raise ValueError(
                f"`model` must have the same layers in every update of one accumulation, {list(known)}, got "
                f"{list(names)}. Call `reset()` for another model."
            )

    def _settle(self) -> None:
        if len(self.counts) > 1:
            self.counts = [self._total()]

    def _total(self) -> Tensor:
        return dim_zero_cat(self.counts).reshape(-1, int(self.width)).sum(dim=0)

    def compute(self) -> Tensor:
        """Accuracies, float64 ``[layers]``; empty without data."""
        if not int(self.width):
            return torch.zeros(0, dtype=torch.float64, device=self.device)
        total = self._total()
        return total[:-1] / total[-1]

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Take over another metric's samples and its layers' names; a ``ValueError`` if it has other layers."""
        self._refuse_others(getattr(incoming_state, "layers", ()) or self.layers, self.layers)
        super().merge_state(incoming_state)
        self.layers = self.layers or getattr(incoming_state, "layers", ())

    def reset(self) -> None:
        """Forget all samples."""
        super().reset()
        self.layers = ()

    def plot(self, val: Tensor | None = None, ax: Any = None) -> Any:
        """Draw the accuracy against the layer from which on activations are removed."""
        from matplotlib.figure import Figure

        value = self.compute() if val is None else val
        axes = Figure().add_subplot() if ax is None else ax
        axes.plot(range(len(value)), value.tolist(), marker="o")
        axes.set_xticks(range(len(self.layers)), self.layers, rotation=90)
        axes.set_ylabel("accuracy of the linear tail")
        return axes.figure, axes


class NetworkModes(SampleMetric):
    """Neuron modes of all layers of a network, as the callback logs them.

    Updates keep samples and the model; :meth:`compute` reads the layers. The result is the same in whatever batches,
    order and number of processes the samples came.

    Args:
        num_classes: Number of classes, checked against the model's output. None: as many as the output has.
        layers: Names or globs of the layers to read, as in :func:`netdyn.functional.local_fields`. None: all.
        max_units: Most units measured per layer; in larger layers, a fixed random choice of this many.
        max_classes: Most classes used; of more classes, a fixed random choice of this many.
        alpha: Share of OPT units that an untrained network may show by chance.
        forward: ``forward(model, inputs)`` → outputs, for models that are not called as ``model(inputs)``.
        batch_size: Samples per forward pass. None: all at once.
        task: What the targets are, as in :class:`netdyn.Config`.
        ignore_index: Marks what has no label.
        seed: Seed of the choices of units and classes.
        max_samples: Most samples kept, those with the smallest content digests. None: all.
        kwargs: Options of :class:`torchmetrics.Metric`.

    Source:
        P1, order-preserving transformations; :class:`netdyn.NeuronModes` does the same with the fields of one layer.

    Examples:
        >>> net = nn.Sequential(nn.Linear(4, 30), nn.ReLU(), nn.Linear(30, 2))
        >>> metric = NetworkModes()
        >>> for x in torch.eye(4).repeat(25, 1).split(20):
        ...     metric.update(net, x, x[:, 0].long())
        >>> 0 <= metric.compute()["modes/opt_fraction/0"] <= 1
        tensor(True)
    """

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        layers: Sequence[str] | None = None,
        max_units: int = 4096,
        max_classes: int = 100,
        alpha: float = 0.05,
        forward: Callable[[Any, Any], Any] | None = None,
        batch_size: int | None = None,
        task: Task = "auto",
        ignore_index: int = -100,
        seed: int = 0,
        max_samples: int | None = 4096,
        **kwargs: Any,
    ) -> None:
        super().__init__(max_samples, **kwargs)
        self.config = Config(
            measure=["modes"],
            layers=None if layers is None else [*layers],
            max_units=max_units,
            max_classes=max_classes,
            alpha=alpha,
            forward=forward,
            batch_size=batch_size,
            task=task,
            ignore_index=ignore_index,
            num_classes=num_classes,
            seed=seed,
        )

    def _measure(self, model: nn.Module, inputs: Inputs, target: Tensor) -> dict[str, float]:
        config = self.config
        with isolated_network(model, config.forward) as network:
            return evaluate(network, Probe(inputs, target), config, distributions=False).scalars()

    def compute(self) -> dict[str, Tensor]:
        """Tag → float64 scalar, as :class:`netdyn.DynamicsMonitor` with ``measure=["modes"]``; empty without data.

        A metric loaded from a checkpoint has samples but no model: it raises a ``RuntimeError`` until an update.
        """
        found = self._found() or {}
        return {tag: torch.tensor(value, dtype=torch.float64, device=self.device) for tag, value in found.items()}
