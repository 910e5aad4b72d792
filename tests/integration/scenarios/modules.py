"""What people put into modules: state that ``forward`` changes, frozen parts, compiled parts, kinds of network."""

from __future__ import annotations

import copy
import functools
import random
import warnings
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import torch
import torch._dynamo.utils
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC

from integration.scenarios.base import CLASSES, FEATURES, Classifier, loader, network, points
from integration.untouched import Training

WIDTH = 12
WORDS = 100


def training(module: nn.Module, data: TensorDataset | None = None, **options: Any) -> Training:
    """A training of this module, or of a classifier around this network."""
    classifier = module if isinstance(module, L.LightningModule) else Classifier(module)
    return Training(classifier, loader(data), loader(data, shuffle=False), **options)


def unvalidated(module: nn.Module, data: TensorDataset | None = None, **options: Any) -> Training:
    """The same without validation, so that only the monitor ever runs the module in eval mode."""
    return training(module, data, trainer={"limit_val_batches": 0}, **options)


# --- modes -----------------------------------------------------------------------------------------------------------


class FrozenNorm(Classifier):
    """One of two normalisations stays in eval mode whatever happens, and so does a dropout."""

    def __init__(self) -> None:
        super().__init__(
            nn.Sequential(
                nn.Linear(FEATURES, WIDTH),
                nn.BatchNorm1d(WIDTH),
                nn.ReLU(),
                nn.Dropout(0.5),
                nn.Linear(WIDTH, WIDTH),
                nn.BatchNorm1d(WIDTH),
                nn.Tanh(),
                nn.Linear(WIDTH, CLASSES),
            )
        )

    def train(self, mode: bool = True) -> FrozenNorm:
        super().train(mode)
        self.net[1].eval()
        self.net[3].eval()
        return self


class FrozenOnce(Classifier):
    """Frozen by hand when training starts, without an override that would freeze it again."""

    def on_train_epoch_start(self) -> None:
        self.net[1].eval()


class LowRank(nn.Linear):
    """Adds its low-rank update to the weight in eval mode, takes it off in training mode, and counts how often."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__(fan_in, fan_out)
        self.a = nn.Parameter(torch.randn(2, fan_in) * 0.1)
        self.b = nn.Parameter(torch.randn(fan_out, 2) * 0.1)
        self.merged = False
        self.switches = 0

    def train(self, mode: bool = True) -> LowRank:
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (self.b @ self.a).data * (-1 if mode else 1)
            self.merged = not mode
            self.switches += 1
        return self

    def forward(self, x: Tensor) -> Tensor:
        update = 0 if self.merged else x @ self.a.T @ self.b.T
        return super().forward(x) + update


class Guarded(nn.Linear):
    """Counts what is assigned to it, and tells its children."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__(fan_in, fan_out)
        self.written: dict[str, int] = Counter()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if "written" in self.__dict__:
            self.written[name] += 1
            super().__setattr__("last_written", name)


def train_override() -> Training:
    return training(nn.Sequential(LowRank(FEATURES, WIDTH), nn.ReLU(), LowRank(WIDTH, CLASSES)))


def setattr_override() -> Training:
    return training(nn.Sequential(Guarded(FEATURES, WIDTH), nn.ReLU(), nn.Dropout(0.2), Guarded(WIDTH, CLASSES)))


# --- state that forward changes --------------------------------------------------------------------------------------


class Counting(Classifier):
    """Counts calls in a plain attribute and in a buffer, and lets the count steer what it does."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.count += 1
        self.net[3].p = 0.1 + 0.01 * (self.calls % 7)
        return self.net(x) * (1 + 0.001 * (int(self.count) % 5))


class ArrayCounting(Classifier):
    """Counts in a NumPy array."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = np.zeros(2, dtype=np.int64)

    def forward(self, x: Tensor) -> Tensor:
        self.seen += (1, len(x))
        return self.net(x) * (1 + 0.001 * (int(self.seen[0]) % 3))


class Meter:
    """A plain running mean, as many code bases have one."""

    def __init__(self) -> None:
        self.total, self.count, self.history = 0.0, 0, []

    def update(self, value: float) -> None:
        self.total += value
        self.count += 1
        self.history.append(value)

    @property
    def mean(self) -> float:
        return self.total / self.count


class Metered(Classifier):
    """Keeps its running mean in an object that is no module, and divides by it."""

    def __init__(self) -> None:
        super().__init__()
        self.meter = Meter()

    def forward(self, x: Tensor) -> Tensor:
        self.meter.update(float(x.detach().abs().mean()))
        return self.net(x / self.meter.mean)


class Collecting(Classifier):
    """Appends to every kind of container, also nested ones, and uses what is in them."""

    def __init__(self) -> None:
        super().__init__()
        self.as_list: list[Tensor] = []
        self.as_dict: dict[str, list[int]] = defaultdict(list)
        self.as_set: set[int] = set()
        self.as_deque: deque[float] = deque([1.0], maxlen=3)
        self.as_counter: Counter[int] = Counter()
        self.nested = ({"inner": [deque([0], maxlen=2)]}, [])

    def forward(self, x: Tensor) -> Tensor:
        self.as_list.append(x.detach().mean(dim=0))
        self.as_dict["sizes"].append(len(x))
        self.as_set.add(len(self.as_list))
        self.as_deque.append(float(x.detach().std()))
        self.as_counter[len(x)] += 1
        self.nested[0]["inner"][0].append(len(x))
        self.nested[1].append(len(self.as_set))
        spread = sum(self.as_deque) / len(self.as_deque)
        return self.net((x - torch.stack(self.as_list).mean(dim=0)) / spread)


class Caching(Classifier):
    """Builds tables when they are first wanted, one of them only in eval mode, and uses whatever there is."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Tensor | None = None
        self.by_size: dict[int, Tensor] = {}
        self.frozen: Tensor | None = None
        self.register_buffer("late", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = x.detach().std(dim=0) + 0.5
        if len(x) not in self.by_size:
            self.by_size[len(x)] = torch.linspace(0.9, 1.1, len(x))[:, None]
        if not self.training and self.frozen is None:
            self.frozen = self.net[0].weight.detach().clone()
            self.late = x.detach().mean(dim=0)
        hidden = x / self.table * self.by_size[len(x)]
        if self.frozen is not None:
            hidden = hidden + 0.1 * (x - self.late) * self.frozen.abs().mean()
        return self.net(hidden)


class LateAttribute(Classifier):
    """Attributes and a child module that appear in the first forward."""

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "centre"):
            self.centre = x.detach().mean(dim=0)
            self.extra = nn.Linear(FEATURES, FEATURES)
        return self.net(x - self.centre + 0.1 * self.extra(x).detach())


@functools.cache
def _wave(width: int) -> Tensor:
    return torch.linspace(0.5, 1.5, width)


class OutsideCache(Classifier):
    """Its table lies outside the module, where no snapshot looks, and is thrown away after every validation.

    Training multiplies by it, so that a table built in inference mode would break the backward pass.
    """

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x * (self.net[0].weight * _wave(FEATURES)).mean(dim=0))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_size", float(len(batch[0])))

    def on_validation_epoch_end(self) -> None:
        _wave.cache_clear()


def outside_cache() -> Training:
    _wave.cache_clear()
    return training(OutsideCache(), monitor={"on_fit_ends": False})


class Logging(Classifier):
    """Logs from ``forward``: by name, by dictionary, and from a child that knows its parent."""

    def forward(self, x: Tensor) -> Tensor:
        if self._trainer is not None:
            self.log("input_mean", x.mean(), on_step=False, on_epoch=True)
            self.log_dict({"input_max": x.max(), "size": float(len(x))}, on_step=False, on_epoch=True)
        return self.net(x)


class Exponent(nn.Module):
    """A module with a method called ``log`` that has nothing to do with logging."""

    def log(self, x: Tensor) -> Tensor:
        return x.abs().add(1).log()

    def log_dict(self) -> dict[str, float]:
        return {"scale": 0.5}

    def forward(self, x: Tensor) -> Tensor:
        return self.log(x) * self.log_dict()["scale"]


def own_log() -> Training:
    return training(nn.Sequential(nn.Linear(FEATURES, WIDTH), Exponent(), nn.ReLU(), nn.Linear(WIDTH, CLASSES)))


class Measuring(Classifier):
    """Updates metrics from ``forward``: as children, in a plain list, one with list states."""

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = MulticlassAccuracy(CLASSES)
        self.curve = MulticlassAUROC(CLASSES)
        self.outside = [MulticlassAccuracy(CLASSES), {"deep": MulticlassAUROC(CLASSES)}]

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        labels = logits.detach().argmax(dim=1)
        shown = x.detach()[:, :CLASSES].softmax(dim=1)
        for metric in (self.accuracy, self.curve, self.outside[0], self.outside[1]["deep"]):
            metric.update(shown, labels)
        return logits

    def on_train_epoch_end(self) -> None:
        self.log("forward_accuracy", self.accuracy)
        self.log("outside_accuracy", self.outside[0].compute())
        self.log("outside_samples", float(sum(len(part) for part in self.outside[1]["deep"].preds)))


def metrics_in_forward() -> Training:
    module = Measuring()
    outside = module.outside
    return training(
        module,
        watched={
            "outside states": lambda: [m.metric_state for m in (outside[0], outside[1]["deep"])],
            "outside counts": lambda: [m.update_count for m in (outside[0], outside[1]["deep"])],
        },
    )


class Drawing(Classifier):
    """Draws from every global generator, in eval mode too."""

    def forward(self, x: Tensor) -> Tensor:
        scale = 1 + 0.01 * np.random.rand() + 0.01 * random.random()  # noqa: NPY002
        return self.net(x * scale + 0.01 * torch.randn_like(x))


class OwnGenerators(Classifier):
    """Draws from generators of its own, one of them in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.torch_generator = torch.Generator().manual_seed(1)
        self.others = [np.random.default_rng(2), {"old": np.random.RandomState(3)}, random.Random(4)]

    def forward(self, x: Tensor) -> Tensor:
        new, old, python = self.others
        scale = 1 + 0.01 * (new.random() + old["old"].rand() + python.random())
        return self.net(x * scale + 0.01 * torch.randn(x.shape, generator=self.torch_generator))


class Averaging(Classifier):
    """Running means in buffers, persistent or not, changed in eval mode too: in place, by assignment, by growing."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.zeros(FEATURES))
        self.register_buffer("passing", torch.zeros(FEATURES), persistent=False)
        self.register_buffer("assigned", torch.zeros(FEATURES))
        self.register_buffer("grown", torch.zeros(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.detach().float().mean(dim=0)
        self.kept.mul_(0.9).add_(0.1 * mean)
        self.passing.lerp_(mean, 0.1)
        self.assigned = 0.9 * self.assigned + 0.1 * mean
        self.grown.resize_(len(self.grown) + 1).fill_(float(len(self.grown)))
        shift = self.kept + self.passing + self.assigned
        return self.net(x - 0.3 * shift + 0.001 * self.grown.mean())


class AveragingData(Classifier):
    """A running mean changed through ``.data``, which no version counter sees."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        self.mean.data.mul_(0.9).add_(0.1 * x.detach().mean(dim=0))
        return self.net(x - self.mean)


class MeanTeacher(Classifier):
    """An average of the weights in a frozen copy, stepped forward in every forward, that the loss looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            for old, new in zip(self.teacher.buffers(), self.net.buffers(), strict=True):
                old.copy_(new)
            shown = self.teacher(x)
        return self.net(x) + 0.1 * shown

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        for old, new in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
            old.data.lerp_(new.data, 0.1)


# --- how the graph is made -------------------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    """Recomputes its blocks in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.start = nn.Linear(FEATURES, WIDTH)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.ReLU(), nn.Dropout(0.2)) for _ in range(2)
        )
        self.end = nn.Linear(WIDTH, CLASSES)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.start(x))
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        return self.end(x)


def checkpointed(reentrant: bool) -> Training:
    return unvalidated(Checkpointed(reentrant))


class InPlace(nn.Module):
    """Writes over whatever it can: its input, its layers' outputs, and slices of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, WIDTH)
        self.second = nn.Linear(WIDTH, WIDTH)
        self.last = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x.clamp_(-3, 3).sub_(0.01)
        x = torch.relu_(self.first(x))
        x = self.second(x)
        x[:, 0] += 1
        return self.last(nn.functional.leaky_relu(x.mul_(0.5), 0.1, inplace=True))


class Shared(nn.Module):
    """One layer, one normalisation and one activation, each used several times."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(FEATURES, WIDTH)
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.act = nn.ReLU()
        self.again = self.act
        self.end = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.start(x)))
        for _ in range(2):
            x = x + self.again(self.norm(self.layer(x)))
        return self.end(x)


class Tied(nn.Module):
    """Two layers with one weight, and a third that uses its transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, FEATURES)
        self.second = nn.Linear(FEATURES, FEATURES)
        self.second.weight = self.first.weight
        self.last = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.last(torch.tanh(x @ self.first.weight))


def tied() -> Training:
    return training(Tied())


def _normed(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.nn\.utils\.\w+_norm` is deprecated", category=FutureWarning)
        first, second = norm(nn.Linear(FEATURES, WIDTH)), norm(nn.Linear(WIDTH, WIDTH))
    return nn.Sequential(first, nn.ReLU(), second, nn.Tanh(), nn.Dropout(0.2), nn.Linear(WIDTH, CLASSES))


class Symmetric(nn.Module):
    """A parametrisation of one's own, which counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def forward(self, weight: Tensor) -> Tensor:
        self.asked += 1
        return weight.triu() + weight.triu(1).T


def own_parametrization() -> Training:
    middle = nn.Linear(WIDTH, WIDTH)
    parametrize.register_parametrization(middle, "weight", Symmetric())
    return training(nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.ReLU(), middle, nn.ReLU(), nn.Linear(WIDTH, CLASSES)))


def frozen_parameters() -> Training:
    net = network()
    net[0].requires_grad_(False)
    net[1].bias.requires_grad_(False)
    return training(net)


class FirstFrozen(Classifier):
    """Unfreezes its first layer in the second epoch."""

    def on_train_epoch_start(self) -> None:
        self.net[0].requires_grad_(self.current_epoch > 0)


def everything_frozen_but_head() -> Training:
    net = network()
    net[:6].requires_grad_(False)
    return training(net)


class Hooked(Classifier):
    """Hooks of the author's own, before and behind, forward and backward, that change what passes and write it down."""

    def __init__(self) -> None:
        super().__init__(
            nn.Sequential(
                nn.Linear(FEATURES, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES)
            )
        )
        self.fields: list[Tensor] = []
        self.norms: list[float] = []
        self.fired = {"pre": 0, "parameter": 0}
        self.net[0].register_forward_hook(self.on_forward)
        self.net[2].register_forward_pre_hook(self.on_enter)
        self.net[2].register_full_backward_hook(self.on_backward)
        self.net[4].weight.register_hook(self.on_gradient)

    def on_forward(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        self.fields = [*self.fields[-3:], output.detach()]
        return output * 1.5

    def on_enter(self, module: nn.Module, args: Any) -> Any:
        self.fired["pre"] += 1
        return (args[0] * (1 + 0.001 * (self.fired["pre"] % 5)),)

    def on_backward(self, module: nn.Module, before: Any, after: Any) -> None:
        self.norms.append(float(after[0].norm()))

    def on_gradient(self, gradient: Tensor) -> Tensor:
        self.fired["parameter"] += 1
        return gradient * (1 + 0.001 * (self.fired["parameter"] % 3))


class Materialised(Classifier):
    """Layers that learn the size of their input in the first forward."""

    def __init__(self) -> None:
        super().__init__(
            nn.Sequential(
                nn.LazyLinear(WIDTH), nn.LazyBatchNorm1d(), nn.ReLU(), nn.Dropout(0.2), nn.LazyLinear(CLASSES)
            )
        )


def lazy_layers() -> Training:
    """Nothing has run before the monitor's first occasion."""
    return unvalidated(Materialised(), evaluations=1)


def lazy_layers_validated() -> Training:
    """The sanity check has run them."""
    return training(Materialised())


# --- kinds of network ------------------------------------------------------------------------------------------------


class Headless(L.LightningModule):
    """A LightningModule that never defined ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = network()
        self.accuracy = MulticlassAccuracy(CLASSES)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits = self.backbone(batch[0])
        self.accuracy(logits, batch[1])
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
        return nn.functional.cross_entropy(logits, batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters())


def headless() -> Training:
    return Training(Headless(), loader())


class Residual(nn.Module):
    """A small residual network for images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.conv = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(nn.functional.relu(self.norm(self.stem(x)), inplace=True), 2)
        x = nn.functional.relu(x + self.norm(self.conv(x)))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def images() -> TensorDataset:
    _, labels = points()
    generator = torch.Generator().manual_seed(5)
    patterns = torch.randn(CLASSES, 2, 8, 8, generator=generator)
    return TensorDataset(patterns[labels] + torch.randn(len(labels), 2, 8, 8, generator=generator), labels)


def residual_network() -> Training:
    return training(Residual(), images())


def channels_last() -> Training:
    return training(Residual().to(memory_format=torch.channels_last), images())


def sequences() -> TensorDataset:
    _, labels = points()
    generator = torch.Generator().manual_seed(6)
    patterns = torch.randn(CLASSES, 5, 4, generator=generator)
    return TensorDataset(patterns[labels] + 0.5 * torch.randn(len(labels), 5, 4, generator=generator), labels)


class Recurrent(nn.Module):
    """A recurrent classifier; ``cell`` is nn.LSTM or nn.GRU."""

    def __init__(self, cell: type[nn.Module]) -> None:
        super().__init__()
        self.cell = cell(4, 8, num_layers=2, dropout=0.2, batch_first=True)
        self.hidden = nn.Linear(8, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(self.cell(x)[0][:, -1])))


def recurrent(cell: type[nn.Module]) -> Training:
    return training(Recurrent(cell), sequences())


class Stateful(Recurrent):
    """Starts every sequence from the state that the last batch left."""

    def __init__(self) -> None:
        super().__init__(nn.LSTM)
        self.state: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        start = None
        if self.state is not None:
            start = tuple(part.mean(dim=1, keepdim=True).expand(-1, len(x), -1).contiguous() for part in self.state)
        out, state = self.cell(x, start)
        self.state = tuple(part.detach() for part in state)
        return self.head(torch.relu(self.hidden(out[:, -1])))


def stateful_recurrent() -> Training:
    # Without validation: a state left by inference mode would break the next training step, with or without a monitor.
    return unvalidated(Stateful(), sequences())


class Encoder(nn.Module):
    """A transformer's encoder layer and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(4, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.project(x)).mean(dim=1))


class Attending(nn.Module):
    """Attention alone, the weights of which are kept for looking at."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.1, batch_first=True)
        self.hidden = nn.Linear(4, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.weights: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        attended, weights = self.attention(x, x, x)
        self.weights = weights.detach()
        return self.head(nn.functional.gelu(self.hidden((x + attended).mean(dim=1))))


def tokens() -> TensorDataset:
    _, labels = points()
    generator = torch.Generator().manual_seed(8)
    ids = torch.randint(0, WORDS, (len(labels), 5), generator=generator)
    ids[:, 0] = labels
    return TensorDataset(ids, labels)


class Reader(nn.Module):
    """Embedded tokens, summed up."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 8, **options)
        self.hidden = nn.Linear(8, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(self.embedding(ids).sum(dim=1))))


def embedding(**options: Any) -> Training:
    return unvalidated(Reader(**options), tokens(), monitor={"measure": ("modes", "weight_basin")})


class Binary(Classifier):
    """One logit a sample, with or without a dimension of its own."""

    def __init__(self, flat: bool) -> None:
        super().__init__(
            nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))
        )
        self.flat = flat

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        return logits[:, 0] if self.flat else logits

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        return nn.functional.binary_cross_entropy_with_logits(self(x).reshape(-1), y.float())


def binary(flat: bool) -> Training:
    inputs, labels = points()
    return training(Binary(flat), TensorDataset(inputs, labels % 2))


def among_best_two(outputs: Tensor, target: Tensor) -> Tensor:
    return (outputs.topk(2, dim=1).indices == target[:, None]).any(dim=1)


def own_criterion() -> Training:
    # Pure noise leaves nearly half of the answers among the best two.
    return training(Classifier(), monitor={"criterion": among_best_two, "accuracy": 0.8})


def in_small_batches() -> Training:
    """A probe that passes in several batches, in two rays, layer by layer."""
    return training(Drawing(), monitor={"batch_size": 20, "sample_rays": 2, "weight_layers": "each", "weight_rays": 1})


def given_probe() -> Training:
    x, y = points(40, seed=3)
    return training(
        Counting(), monitor={"probe": (x, y)}, watched={"probe's inputs": lambda: x, "probe's target": lambda: y}
    )


class Picky(Classifier):
    """Returns more than logits; told apart by ``forward=``."""

    def forward(self, x: Tensor) -> Any:  # type: ignore[override]
        logits = self.net(x)
        return {"logits": logits, "features": x}

    def loss(self, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0])["logits"], batch[1])


def pick_logits(module: Any, inputs: Tensor) -> Tensor:
    return module(inputs)["logits"]


def forward_given() -> Training:
    return training(Picky(), monitor={"forward": pick_logits})


# --- compiled parts --------------------------------------------------------------------------------------------------


def compilations() -> dict[str, int]:
    """How many graphs were captured, and how many calls lie in them, since the counters were last cleared."""
    stats = torch._dynamo.utils.counters["stats"]
    assert stats["unique_graphs"] > 0, "nothing was compiled"
    return {"graphs": stats["unique_graphs"], "calls captured": stats["calls_captured"]}


class Compilable(nn.Module):
    """A module of one's own: a Sequential that is compiled in place runs eagerly."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def _start_compiling() -> None:
    with warnings.catch_warnings():
        # Loading the compiler defines a scripted class.
        warnings.filterwarnings(
            "ignore", message=r"`torch\.jit\.script_method` is deprecated", category=DeprecationWarning
        )
        import torch._inductor.compile_fx
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def compiled(in_place: bool, backend: str) -> Training:
    _start_compiling()
    if in_place:
        net: Any = Compilable(network())
        net.compile(backend=backend)
    else:
        net = torch.compile(network(), backend=backend)
    # Validation needs a second graph, and with a real compiler twice the time.
    build = unvalidated if backend == "inductor" else training
    return build(net, watched={"compilations": compilations})


@torch.compile(backend="eager")
def _swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class CompiledFunction(nn.Module):
    """An eager network that calls a compiled function."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(_swish(self.first(x))))


def _fit_compiling(trainer: L.Trainer, training: Training) -> None:
    with warnings.catch_warnings():
        # The compiler asks every input for its gradient.
        message = r"The \.grad attribute of a Tensor that is not a leaf"
        warnings.filterwarnings("ignore", message=message, category=UserWarning)
        trainer.fit(training.module, training.train, training.val)


def compiled_function() -> Training:
    _start_compiling()
    return training(CompiledFunction(), watched={"compilations": compilations}, stages=_fit_compiling)


SCENARIOS: dict[str, Callable[[], Training]] = {
    "frozen_batch_norm": lambda: training(FrozenNorm()),
    "batch_norm_frozen_each_epoch": lambda: training(FrozenOnce()),
    "train_overridden": train_override,
    "setattr_overridden": setattr_override,
    "forward_counts": lambda: training(Counting()),
    "forward_counts_in_an_array": lambda: training(ArrayCounting()),
    "forward_feeds_an_object": lambda: training(Metered()),
    "forward_fills_containers": lambda: unvalidated(Collecting()),
    "forward_caches": lambda: unvalidated(Caching()),
    "forward_adds_attributes": lambda: unvalidated(LateAttribute()),
    "cache_outside_the_module": outside_cache,
    "forward_logs": lambda: training(Logging()),
    "a_method_named_log": own_log,
    "forward_updates_metrics": metrics_in_forward,
    "forward_draws_from_global_generators": lambda: training(Drawing()),
    "forward_draws_from_own_generators": lambda: training(OwnGenerators()),
    "forward_averages_in_buffers": lambda: training(Averaging()),
    "forward_averages_behind_autograd": lambda: training(AveragingData()),
    "mean_teacher": lambda: training(MeanTeacher()),
    "checkpointing_reentrant": lambda: checkpointed(True),
    "checkpointing_not_reentrant": lambda: checkpointed(False),
    "in_place_operations": lambda: training(InPlace()),
    "shared_modules": lambda: training(Shared()),
    "tied_weights": tied,
    "weight_norm_old": lambda: training(_normed(torch.nn.utils.weight_norm)),
    "weight_norm": lambda: training(_normed(parametrizations.weight_norm)),
    "spectral_norm_old": lambda: training(_normed(torch.nn.utils.spectral_norm)),
    "spectral_norm": lambda: training(_normed(parametrizations.spectral_norm)),
    "own_parametrization": own_parametrization,
    "frozen_parameters": frozen_parameters,
    "frozen_but_for_the_head": everything_frozen_but_head,
    "unfrozen_later": lambda: training(FirstFrozen()),
    "hooks_of_the_author": lambda: training(Hooked()),
    "lazy_layers": lazy_layers,
    "lazy_layers_validated": lazy_layers_validated,
    "no_forward": headless,
    "residual_network": residual_network,
    "channels_last": channels_last,
    "lstm": lambda: recurrent(nn.LSTM),
    "gru": lambda: recurrent(nn.GRU),
    "lstm_that_keeps_its_state": stateful_recurrent,
    "transformer_encoder_layer": lambda: training(Encoder(), sequences()),
    "multi_head_attention": lambda: training(Attending(), sequences()),
    "embedding": embedding,
    "embedding_with_a_largest_norm": lambda: embedding(max_norm=1.0),
    "single_logit": lambda: binary(flat=False),
    "single_logit_flat": lambda: binary(flat=True),
    "criterion_given": own_criterion,
    "small_batches": in_small_batches,
    "probe_given": given_probe,
    "forward_given": forward_given,
    "compiled_inductor": lambda: compiled(in_place=False, backend="inductor"),
    "compiled_in_place_inductor": lambda: compiled(in_place=True, backend="inductor"),
    "compiled_validated": lambda: compiled(in_place=False, backend="eager"),
    "compiled_in_place_validated": lambda: compiled(in_place=True, backend="eager"),
    "compiled_function": compiled_function,
}
