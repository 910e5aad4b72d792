"""Kinds of networks that people train, each with a twin rewritten by hand in which no activation is left.

A network's `explicit(tape, x)` computes what `forward(x)` computes from the same weights, written out, with every
activation made through `tape.act(name, h, phi)` and every max-pooling through `tape.pool`. The tape puts in place of
phi(h) the sum h + (phi(h0) - h0), whose second part is a number: the values are the network's own, and what follows is
a network without activations. Autograd's Jacobian of it, one sample at a time, is the map that netdyn is to find. None
of this shares code with netdyn.

    images [samples, 2, 8, 8], features [samples, 6], sequences [samples, 7, 6], tokens [samples, 7]; 5 classes
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import networks
from reference import normalised

SAMPLES, CLASSES, FEATURES, STEPS = 30, 5, 6, 7


class Tape:
    """Stands between an explicitly written network and its activations, and keeps what these read.

    `at` says where a call's part of a layer belongs, if the layer is read in several calls (time steps, gates).
    """

    def __init__(self):
        self.probes, self.fields, self.outputs = {}, {}, {}

    def act(self, name, h, phi, at=()):
        probe = torch.zeros_like(h, requires_grad=True)
        value = phi(h.detach().clone())
        for record, entry in ((self.probes, probe), (self.fields, h.detach()), (self.outputs, value.detach())):
            assert at not in record.setdefault(name, {})
            record[name][at] = entry
        h = h + probe
        return h + (value - h).detach()

    @staticmethod
    def pool(x, maximum, average):
        return average(x) + (maximum(x) - average(x)).detach()


class Oracle(NamedTuple):
    """What the twin says: layer → local fields and outputs [samples, units], maps [samples, classes, units]."""

    fields: dict[str, torch.Tensor]
    outputs: dict[str, torch.Tensor]
    jacobians: dict[str, torch.Tensor]
    logits: torch.Tensor

    def chosen(self):
        """The samples that a map is to be averaged over: 4, and 16 or all where the mean of fewer is not yet known.

        It is known when its standard error is at most a fortieth of its size, in every layer.
        """
        samples = len(self.logits)
        for number in (4, 16, samples):
            index = torch.tensor([i * samples // min(number, samples) for i in range(min(number, samples))])
            if all(not self.defect(name, index) / len(index) ** 0.5 > 1 / 40 for name in self.jacobians):
                break
        return index

    def maps(self):
        index = self.chosen()
        return {name: jacobian[index].mean(dim=0) for name, jacobian in self.jacobians.items()}

    def defect(self, name, index=None):
        """Share of the Jacobian that depends on the sample, from its definition."""
        jacobian = self.jacobians[name][self.chosen() if index is None else index]
        size = (jacobian**2).sum(dim=(1, 2)).mean()
        spread = ((jacobian - jacobian.mean(dim=0)) ** 2).sum() / (len(jacobian) - 1)
        return float((spread / size).clamp(max=1).sqrt()) if size else 0.0


def sample(inputs, s):
    """The inputs of one sample, as a batch of one."""
    if isinstance(inputs, dict):
        return {key: value[s : s + 1] for key, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(value[s : s + 1] for value in inputs)
    return inputs[s : s + 1]


def flat(record):
    """Layer → everything its calls read, or put out, in the order of their places."""
    return {name: torch.cat([parts[at].flatten() for at in sorted(parts)]) for name, parts in record.items()}


def oracle(explicit, inputs, samples=SAMPLES):
    """Run the twin on each sample alone, so that a batch of one flattens to the units in their order."""
    rows = []
    for s in range(samples):
        tape = Tape()
        logits = explicit(tape, sample(inputs, s))
        assert logits.shape[0] == 1
        places = [(name, at) for name, parts in tape.probes.items() for at in sorted(parts)]
        probes = [tape.probes[name][at] for name, at in places]
        slopes = {name: [] for name in tape.probes}
        for k in range(logits.shape[1]):
            gradients = torch.autograd.grad(logits[0, k], probes, retain_graph=True, allow_unused=True)
            of_class = {name: [] for name in tape.probes}
            for (name, _), probe, gradient in zip(places, probes, gradients, strict=True):
                of_class[name].append((torch.zeros_like(probe) if gradient is None else gradient).flatten())
            for name, parts in of_class.items():
                slopes[name].append(torch.cat(parts))

        def row(record, tape=tape):
            return {
                name: torch.cat([record[name][at].flatten() for at in sorted(record[name])]) for name in tape.probes
            }

        rows.append(
            (row(tape.fields), row(tape.outputs), {n: torch.stack(j) for n, j in slopes.items()}, logits[0].detach())
        )
    fields, outputs, jacobians = (
        {name: torch.stack([row[part][name] for row in rows]) for name in rows[0][part]} for part in range(3)
    )
    return Oracle(fields, outputs, jacobians, torch.stack([row[3] for row in rows]))


class Family(NamedTuple):
    """A network, what it is fed with, and how netdyn is told what to read.

    `forward` is diagnose's argument; `registered` are activations of the family's own, for `register_activation`.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    layers: list[str] | None = None
    forward: Callable[[nn.Module, Any], torch.Tensor] | None = None
    registered: tuple[Any, ...] = ()

    def network(self):
        """Parameters as `networks.fill` draws them; what else is drawn (a norm's vectors) comes from a seed too."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = self.build()
        return networks.fill(network).double().eval()


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def features():
    return draw(SAMPLES, FEATURES)


def images():
    return draw(SAMPLES, 2, 8, 8)


def sequences():
    return draw(SAMPLES, STEPS, FEATURES)


def tokens():
    return torch.randint(11, (SAMPLES, STEPS), generator=torch.Generator().manual_seed(1))


def target():
    return torch.arange(SAMPLES) % CLASSES


def affine(linear, x):
    """A linear layer, written out."""
    y = x @ linear.weight.T
    return y if linear.bias is None else y + linear.bias


def layer_norm(norm, x):
    """Layer normalisation of the last axis."""
    centred = x - x.mean(dim=-1, keepdim=True)
    return norm.weight * centred / ((centred**2).mean(dim=-1, keepdim=True) + norm.eps).sqrt() + norm.bias


def convolved(conv, x):
    return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, groups=conv.groups)


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def positive_part(x):
    return x * (x > 0)


def silu(x):
    return x * sigmoid(x)


def gelu(x):
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def hardswish(x):
    return x * (x + 3).clamp(0, 6) / 6


# Fully connected ----------------------------------------------------------------------------------------------------


class Linears(nn.Module):
    """A linear network: what counts as a local field must be named."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(FEATURES, 7), nn.Linear(7, 8), nn.Linear(8, CLASSES))

    def forward(self, x):
        return self.fc(x)

    def explicit(self, tape, x):
        first, second, last = self.fc
        x = tape.act("fc.0", affine(first, x), lambda h: h)
        return affine(last, tape.act("fc.1", affine(second, x), lambda h: h))


#: How an activation may be called, and the same on a plain number's terms.
CALLS = {
    "F.relu": (F.relu, positive_part),
    "relu, in place": (lambda h: F.relu(h, inplace=True), positive_part),
    "h.relu_()": (lambda h: h.relu_(), positive_part),
    "torch.relu": (torch.relu, positive_part),
    "h.tanh()": (lambda h: h.tanh(), lambda h: 1 - 2 / (torch.exp(2 * h) + 1)),
    "h.sigmoid_()": (lambda h: h.sigmoid_(), sigmoid),
    "torch.special.expit": (torch.special.expit, sigmoid),
    "F.gelu": (F.gelu, gelu),
    "nn.GELU": (nn.GELU(), gelu),
    "F.silu": (F.silu, silu),
    "nn.Hardswish": (nn.Hardswish(), hardswish),
    "F.mish": (F.mish, lambda h: h * torch.tanh(torch.log1p(torch.exp(h)))),
    "F.softplus": (F.softplus, lambda h: torch.log1p(torch.exp(h))),
    "F.softsign": (F.softsign, lambda h: h / (1 + h.abs())),
    "F.tanhshrink": (F.tanhshrink, lambda h: h - torch.tanh(h)),
    "F.softshrink": (F.softshrink, lambda h: h.sign() * positive_part(h.abs() - 0.5)),
    "F.hardshrink": (F.hardshrink, lambda h: h * (h.abs() > 0.5)),
    "F.hardtanh": (F.hardtanh, lambda h: h.clamp(-1, 1)),
    "F.hardsigmoid": (F.hardsigmoid, lambda h: (h + 3).clamp(0, 6) / 6),
    "F.relu6": (F.relu6, lambda h: h.clamp(0, 6)),
    "F.leaky_relu": (F.leaky_relu, lambda h: torch.where(h > 0, h, 0.01 * h)),
    "F.elu": (F.elu, lambda h: torch.where(h > 0, h, torch.exp(h) - 1)),
    "F.selu": (
        F.selu,
        lambda h: 1.0507009873554805 * torch.where(h > 0, h, 1.6732632423543772 * (torch.exp(h) - 1)),
    ),
    "F.celu": (lambda h: F.celu(h, 2.0), lambda h: torch.where(h > 0, h, 2 * (torch.exp(h / 2) - 1))),
    "F.logsigmoid": (F.logsigmoid, lambda h: -torch.log1p(torch.exp(-h))),
    "F.threshold": (lambda h: F.threshold(h, 0.2, -1.0), lambda h: torch.where(h > 0.2, h, -1.0)),
    "F.rrelu": (F.rrelu, lambda h: torch.where(h > 0, h, h * (1 / 8 + 1 / 3) / 2)),
}


class ManyActivations(nn.Module):
    """One layer after another, each with the next way to call an activation, and a way round each."""

    def __init__(self):
        super().__init__()
        self.fc = nn.ModuleList(nn.Linear(FEATURES, FEATURES) for _ in CALLS)
        self.out = nn.Linear(FEATURES, CLASSES)

    def forward(self, x):
        for fc, (call, _) in zip(self.fc, CALLS.values(), strict=True):
            x = 0.7 * x + call(fc(x))
        return self.out(x)

    def explicit(self, tape, x):
        for i, (fc, (_, phi)) in enumerate(zip(self.fc, CALLS.values(), strict=True)):
            x = 0.7 * x + tape.act(f"fc.{i}", affine(fc, x), phi)
        return affine(self.out, x)


class WithPReLU(nn.Module):
    """A slope for all units, and one for each."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(FEATURES, 9), nn.Linear(9, 8)
        self.one, self.each = nn.PReLU(), nn.PReLU(8)
        self.out = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.out(self.each(self.fc2(self.one(self.fc1(x)))))

    def explicit(self, tape, x):
        for name, fc, slopes in (("fc1", self.fc1, self.one.weight), ("fc2", self.fc2, self.each.weight)):
            x = tape.act(name, affine(fc, x), lambda h, slopes=slopes: torch.where(h > 0, h, slopes * h))
        return affine(self.out, x)


class Squareplus(torch.autograd.Function):
    """(h + sqrt(h² + 4)) / 2, with a backward pass of its own."""

    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return (h + (h * h + 4).sqrt()) / 2

    @staticmethod
    def backward(ctx, gradient):
        (h,) = ctx.saved_tensors
        return gradient * (1 + h / (h * h + 4).sqrt()) / 2


class LearnedSwish(nn.Module):
    """h · sigmoid(βh) with a β for each unit: an activation with parameters, and one of torch's inside."""

    def __init__(self, units):
        super().__init__()
        self.beta = nn.Parameter(torch.ones(units))

    def forward(self, h):
        return h * torch.sigmoid(self.beta * h)


class OwnActivations(nn.Module):
    """An autograd function, a module with parameters, and a function of torch's that is no activation elsewhere."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(FEATURES, 9), nn.Linear(9, 8), nn.Linear(8, 7)
        self.swish = LearnedSwish(8)
        self.out = nn.Linear(7, CLASSES)

    def forward(self, x):
        x = self.fc2(Squareplus.apply(self.fc1(x)))
        return self.out(torch.asinh(self.fc3(self.swish(x))))

    def explicit(self, tape, x):
        x = tape.act("fc1", affine(self.fc1, x), lambda h: (h + (h**2 + 4) ** 0.5) / 2)
        x = tape.act("fc2", affine(self.fc2, x), lambda h: h * sigmoid(self.swish.beta * h))
        x = tape.act("fc3", affine(self.fc3, x), lambda h: torch.log(h + (h**2 + 1) ** 0.5))
        return affine(self.out, x)


class WithGLU(nn.Module):
    """Gated linear units, as a module and as a function: the local field is the gate's half, b in a · sigmoid(b).

    The layer has the name of the module that made both halves.
    """

    def __init__(self):
        super().__init__()
        self.fc1, self.glu = nn.Linear(FEATURES, 16), nn.GLU()
        self.inner = FunctionalGLU()
        self.out = nn.Linear(7, CLASSES)

    def forward(self, x):
        return self.out(self.inner(self.glu(self.fc1(x))))

    def explicit(self, tape, x):
        h = affine(self.fc1, x)
        x = h[:, :8] * tape.act("fc1", h[:, 8:], sigmoid)
        h = affine(self.inner.fc, x)
        return affine(self.out, h[:, :7] * tape.act("inner", h[:, 7:], sigmoid))


class FunctionalGLU(nn.Module):
    """The halves lie along an axis that is not the last."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 14)

    def forward(self, x):
        return F.glu(self.fc(x).unflatten(1, (2, 7)), dim=1).flatten(1)


class SwiGLU(nn.Module):
    """Two matrices, the gate's output in a SiLU; and one matrix whose output is cut in two."""

    def __init__(self):
        super().__init__()
        self.gate, self.value = nn.Linear(FEATURES, 9, bias=False), nn.Linear(FEATURES, 9, bias=False)
        self.fused = FusedSwiGLU()
        self.out = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.out(self.fused(F.silu(self.gate(x)) * self.value(x)))

    def explicit(self, tape, x):
        x = tape.act("gate", affine(self.gate, x), silu) * affine(self.value, x)
        h = affine(self.fused.fc, x)
        return affine(self.out, tape.act("fused", h[:, :8], silu) * h[:, 8:])


class FusedSwiGLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(9, 16)

    def forward(self, x):
        gate, value = self.fc(x).chunk(2, dim=-1)
        return F.silu(gate) * value


class Tied(nn.Module):
    """One layer runs twice, and its matrix a third time, transposed."""

    def __init__(self):
        super().__init__()
        self.fc, self.body = nn.Linear(FEATURES, FEATURES), TiedBody()
        self.out = nn.Linear(FEATURES, CLASSES)
        self.body.weight = self.fc.weight

    def forward(self, x):
        return self.out(self.body(F.relu(self.fc(torch.tanh(self.fc(x))))))

    def explicit(self, tape, x):
        x = tape.act("fc", affine(self.fc, x), torch.tanh)
        x = tape.act("fc:1", affine(self.fc, x), positive_part)
        return affine(self.out, tape.act("body", x @ self.fc.weight, gelu))


class TiedBody(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(FEATURES, FEATURES))

    def forward(self, x):
        return F.gelu(F.linear(x, self.weight.T))


class LoRALinear(nn.Module):
    """Wx + BAx/2 with a frozen W."""

    def __init__(self, n, m, rank=2):
        super().__init__()
        self.base = nn.Linear(n, m).requires_grad_(False)
        self.a, self.b = nn.Linear(n, rank, bias=False), nn.Linear(rank, m, bias=False)

    def forward(self, x):
        return self.base(x) + 0.5 * self.b(self.a(x))

    def written_out(self, x):
        return x @ (self.base.weight + 0.5 * self.b.weight @ self.a.weight).T + self.base.bias


class Adapted(nn.Module):
    """Low-rank adapters on a frozen network."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.out = LoRALinear(FEATURES, 9), LoRALinear(9, 8), LoRALinear(8, CLASSES)

    def forward(self, x):
        return self.out(F.gelu(self.fc2(F.relu(self.fc1(x)))))

    def explicit(self, tape, x):
        x = tape.act("fc1", self.fc1.written_out(x), positive_part)
        return self.out.written_out(tape.act("fc2", self.fc2.written_out(x), gelu))


class PositiveWeight(nn.Module):
    """softplus(W): an activation's function on a parameter is no local field."""

    def forward(self, weight):
        return F.softplus(weight)


class Parametrised(nn.Module):
    """Weights that are computed from others. The third has a row for each sample of the probe, like a local field."""

    def __init__(self):
        super().__init__()
        self.fc1 = parametrizations.weight_norm(nn.Linear(FEATURES, 9))
        self.fc2 = parametrizations.spectral_norm(nn.Linear(9, 8))
        self.fc3 = nn.Linear(8, SAMPLES)
        parametrize.register_parametrization(self.fc3, "weight", PositiveWeight(), unsafe=True)
        self.fc4 = parametrizations.orthogonal(nn.Linear(SAMPLES, 7), orthogonal_map="cayley", use_trivialization=False)
        self.out = nn.Linear(7, CLASSES)

    def forward(self, x):
        x = torch.tanh(self.fc2(torch.tanh(self.fc1(x))))
        return self.out(torch.relu(self.fc4(torch.relu(self.fc3(x)))))

    def explicit(self, tape, x):
        size, direction = self.fc1.parametrizations.weight.original0, self.fc1.parametrizations.weight.original1
        norm = self.fc2.parametrizations.weight[0]
        raw = self.fc2.parametrizations.weight.original
        weights = [
            size * direction / (direction**2).sum(dim=1, keepdim=True).sqrt(),
            raw / (norm._u @ raw @ norm._v),
            torch.log1p(torch.exp(self.fc3.parametrizations.weight.original)),
            self.fc4.weight,
        ]
        phis = (torch.tanh, torch.tanh, positive_part, positive_part)
        for i, (weight, phi) in enumerate(zip(weights, phis, strict=True), start=1):
            x = tape.act(f"fc{i}", x @ weight.T + getattr(self, f"fc{i}").bias, phi)
        return affine(self.out, x)


class Autoencoder(nn.Module):
    """Puts out a reconstruction and logits; what decodes is wired to no logit."""

    def __init__(self, named=False):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(FEATURES, 9), nn.ReLU(), nn.Linear(9, 4), nn.Tanh())
        self.decoder = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, FEATURES))
        self.head = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, CLASSES))
        self.named = named

    def forward(self, x):
        code = self.encoder(x)
        outputs = {"reconstruction": self.decoder(code), "logits": self.head(code)}
        return outputs if self.named else tuple(outputs.values())

    def explicit(self, tape, x):
        code = tape.act("encoder.0", affine(self.encoder[0], x), positive_part)
        code = tape.act("encoder.2", affine(self.encoder[2], code), torch.tanh)
        tape.act("decoder.0", affine(self.decoder[0], code), positive_part)
        return affine(self.head[2], tape.act("head.0", affine(self.head[0], code), gelu))


FULLY_CONNECTED = {
    "linear network": Family(Linears, features, layers=["fc.0", "fc.1"]),
    "every way to call an activation": Family(ManyActivations, features),
    "PReLU": Family(WithPReLU, features),
    "own activations": Family(OwnActivations, features, registered=(Squareplus, LearnedSwish, torch.asinh)),
    "GLU": Family(WithGLU, features),
    "SwiGLU": Family(SwiGLU, features),
    "tied weights": Family(Tied, features),
    "low-rank adapters": Family(Adapted, features),
    "parametrised weights": Family(Parametrised, features),
    "autoencoder, tuple": Family(Autoencoder, features, forward=lambda network, x: network(x)[1]),
    "autoencoder, dict": Family(lambda: Autoencoder(True), features, forward=lambda network, x: network(x)["logits"]),
}


# Convolutional ------------------------------------------------------------------------------------------------------


class PlainCNN(nn.Module):
    """Convolution, activation, pooling, twice; every kind of pooling window."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 3, 3, padding=1)
        self.conv2 = nn.Conv2d(3, 4, 3, padding=1)
        self.conv3 = nn.Conv2d(4, 4, 2)
        self.fc1, self.fc2 = nn.Linear(16, 9), nn.Linear(9, CLASSES)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = F.max_pool2d(F.elu(self.conv2(x)), 3, stride=1, padding=1)
        x = F.adaptive_max_pool2d(torch.tanh(self.conv3(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))

    def explicit(self, tape, x):
        x = tape.act("conv1", convolved(self.conv1, x), positive_part)
        x = tape.pool(x, lambda h: F.max_pool2d(h, 2), lambda h: F.avg_pool2d(h, 2))
        x = tape.act("conv2", convolved(self.conv2, x), lambda h: torch.where(h > 0, h, torch.exp(h) - 1))
        x = tape.pool(
            x,
            lambda h: F.max_pool2d(h, 3, stride=1, padding=1),
            lambda h: F.avg_pool2d(h, 3, stride=1, padding=1, count_include_pad=False),
        )
        x = tape.act("conv3", convolved(self.conv3, x), torch.tanh)
        x = tape.pool(x, lambda h: F.adaptive_max_pool2d(h, 2), lambda h: F.adaptive_avg_pool2d(h, 2))
        return affine(self.fc2, tape.act("fc1", affine(self.fc1, x.flatten(1)), positive_part))


class SqueezeExcite(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, 3), nn.Linear(3, channels)

    def forward(self, x):
        gates = torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3))), inplace=True)))
        return x * gates[:, :, None, None]

    def explicit(self, tape, name, x):
        h = tape.act(f"{name}.fc1", affine(self.fc1, x.mean((2, 3))), positive_part)
        return x * tape.act(f"{name}.fc2", affine(self.fc2, h), sigmoid)[:, :, None, None]


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 and a way round them, all that can be written over."""

    def __init__(self, channels, width, stride=1, excite=False):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 2 * width, 1, bias=False), nn.BatchNorm2d(2 * width)
        self.relu = nn.ReLU(inplace=True)
        self.se = SqueezeExcite(2 * width) if excite else None
        self.downsample = None
        if stride != 1 or channels != 2 * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, 2 * width, 1, stride=stride, bias=False), nn.BatchNorm2d(2 * width)
            )

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(out)))))
        if self.se is not None:
            out = self.se(out)
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)

    def explicit(self, tape, name, x):
        out = tape.act(f"{name}.bn1", normalised(self.bn1, convolved(self.conv1, x)), positive_part)
        out = tape.act(f"{name}.bn2", normalised(self.bn2, convolved(self.conv2, out)), positive_part)
        out = normalised(self.bn3, convolved(self.conv3, out))
        if self.se is not None:
            out = self.se.explicit(tape, f"{name}.se", out)
        if self.downsample is not None:
            x = normalised(self.downsample[1], convolved(self.downsample[0], x))
        return tape.act(f"{name}.relu", out + x, positive_part)


class ResNet(nn.Module):
    """Stem, max-pooling, stages of bottlenecks, global average."""

    def __init__(self, blocks=(2, 1), width=2, excite=True):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 2 * width, 3, padding=1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(2 * width), nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = nn.ModuleList()
        channels = 2 * width
        for stage, number in enumerate(blocks):
            wide = width * 2**stage
            rows = []
            for block in range(number):
                rows.append(Bottleneck(channels, wide, 2 if stage and not block else 1, excite))
                channels = 2 * wide
            self.stages.append(nn.Sequential(*rows))
        self.fc = nn.Linear(channels, CLASSES)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in self.stages:
            x = stage(x)
        return self.fc(x.mean((2, 3)))

    def explicit(self, tape, x):
        x = tape.act("bn1", normalised(self.bn1, convolved(self.conv1, x)), positive_part)
        x = tape.pool(
            x,
            lambda h: F.max_pool2d(h, 3, stride=2, padding=1),
            lambda h: F.avg_pool2d(h, 3, stride=2, padding=1, count_include_pad=False),
        )
        for i, stage in enumerate(self.stages):
            for j, block in enumerate(stage):
                x = block.explicit(tape, f"stages.{i}.{j}", x)
        return affine(self.fc, x.mean((2, 3)))


class Depthwise(nn.Module):
    """Inverted residuals: widen, filter each channel alone, narrow; one smooth activation after another."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn0, self.act0 = nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.BatchNorm2d(3), nn.Hardswish(True)
        self.widen, self.bn1, self.act1 = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.SiLU(inplace=True)
        self.deep, self.bn2, self.act2 = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6), nn.GELU()
        self.narrow, self.bn3 = nn.Conv2d(6, 3, 1), nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, CLASSES)

    def forward(self, x):
        x = self.act0(self.bn0(self.stem(x)))
        y = self.act2(self.bn2(self.deep(self.act1(self.bn1(self.widen(x))))))
        x = x + self.bn3(self.narrow(y))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))

    def explicit(self, tape, x):
        x = tape.act("bn0", normalised(self.bn0, convolved(self.stem, x)), hardswish)
        y = tape.act("bn1", normalised(self.bn1, convolved(self.widen, x)), silu)
        y = tape.act("bn2", normalised(self.bn2, convolved(self.deep, y)), gelu)
        return affine(self.fc, (x + normalised(self.bn3, convolved(self.narrow, y))).mean((2, 3)))


CONVOLUTIONAL = {
    "plain CNN": Family(PlainCNN, images),
    "ResNet": Family(ResNet, images),
    "depthwise CNN": Family(Depthwise, images),
}
