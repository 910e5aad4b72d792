"""Small networks in plain torch, shared by the tests; every number in them comes from a private generator.

Images are [samples, 2, 8, 8], all other inputs [samples, 6]; there are four classes.
"""

import itertools
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

FEATURES, CLASSES = 6, 4
WIDTHS = (FEATURES, 9, 8, 7, CLASSES)


def fill(network, seed=0):
    """Draw all parameters and batch-norm statistics: weights of spread 1 / sqrt(fan in), the rest of spread 1."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.copy_(torch.randn(parameter.shape, generator=draw) / fan_in**0.5)
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.copy_(torch.randn(module.num_features, generator=draw))
                module.running_var.copy_(torch.rand(module.num_features, generator=draw) + 0.5)
    return network


def samples(number=80, seed=1, shape=(FEATURES,)):
    return torch.randn(number, *shape, generator=torch.Generator().manual_seed(seed))


def images(number=80, seed=1):
    return samples(number, seed, (2, 8, 8))


def labels(number=80, classes=CLASSES):
    return torch.arange(number) % classes


def weights_of(network):
    """The matrices of its linear layers, in order."""
    return [module.weight for module in network.modules() if isinstance(module, nn.Linear)]


def factors_of(network):
    """What its batch normalisations multiply by when they use their running statistics, in order."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm1d)]
    return [norm.weight / (norm.running_var + norm.eps).sqrt() for norm in norms]


# Fully connected ----------------------------------------------------------------------------------------------------


def bn_mlp(activation=nn.ReLU, widths=WIDTHS):
    """fc1, bn1, act1, fc2, ... with a module for every activation."""
    layers = OrderedDict()
    for i in range(1, len(widths)):
        layers[f"fc{i}"] = nn.Linear(widths[i - 1], widths[i])
        if i < len(widths) - 1:
            layers[f"bn{i}"] = nn.BatchNorm1d(widths[i])
            layers[f"act{i}"] = activation()
    return fill(nn.Sequential(layers))


class FunctionalMLP(nn.Module):
    """Activations are functions, a different one in every layer."""

    def __init__(self, activations=(F.relu, torch.tanh, F.gelu), widths=WIDTHS):
        super().__init__()
        self.activations = activations
        self.fc = nn.ModuleList(nn.Linear(n, m) for n, m in itertools.pairwise(widths))

    def forward(self, x):
        for activation, fc in zip(self.activations, self.fc, strict=False):
            x = activation(fc(x))
        return self.fc[-1](x)


def functional_mlp(**options):
    return fill(FunctionalMLP(**options))


def shared_mlp(activation=None):
    """One activation module serves all layers: 0, 2 and 4 are linear, 1, 3 and 5 the same module."""
    act = activation or nn.ReLU()
    pairs = [(nn.Linear(n, m), act) for n, m in itertools.pairwise(WIDTHS[:-1])]
    return fill(nn.Sequential(*(module for pair in pairs for module in pair), nn.Linear(*WIDTHS[-2:])))


class CheckpointedMLP(nn.Module):
    """Its middle part is run again in the backward pass, instead of keeping its activations."""

    def __init__(self, use_reentrant):
        super().__init__()
        self.use_reentrant = use_reentrant
        self.first = nn.Linear(FEATURES, 9)
        self.middle = nn.Sequential(nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 7), nn.ReLU())
        self.last = nn.Linear(7, CLASSES)

    def forward(self, x):
        h = F.relu(self.first(x))
        if self.use_reentrant is None:
            return self.last(self.middle(h))
        return self.last(checkpoint(self.middle, h, use_reentrant=self.use_reentrant))


class Repeated(nn.Module):
    """One layer runs three times."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(FEATURES, FEATURES)
        self.out = nn.Linear(FEATURES, CLASSES)

    def forward(self, x):
        for _ in range(3):
            x = F.relu(self.fc(x))
        return self.out(x)


class Sum(nn.Module):
    """Its local field is a sum, which no module made."""

    def __init__(self, act=F.relu):
        super().__init__()
        self.left = nn.Linear(FEATURES, 8)
        self.right = nn.Linear(FEATURES, 8)
        self.act = act

    def forward(self, x):
        return self.act(self.left(x) + self.right(x))


def linear_network():
    """Three matrices and no activation."""
    return fill(nn.Sequential(nn.Linear(FEATURES, 5), nn.Linear(5, 8), nn.Linear(8, CLASSES)))


def one_hidden(activation, classes=CLASSES):
    """0 linear, 1 the activation, 2 linear."""
    return fill(nn.Sequential(nn.Linear(FEATURES, 8), activation, nn.Linear(8, classes)))


class Ending(nn.Module):
    """A hidden layer, then logits, then a last function."""

    def __init__(self, end, classes=CLASSES):
        super().__init__()
        self.first = nn.Linear(FEATURES, 8)
        self.last = nn.Linear(8, classes)
        self.end = end

    def forward(self, x):
        return self.end(self.last(torch.relu(self.first(x))))


def single_logit(end=torch.sigmoid):
    return fill(Ending(end, classes=1))


def probabilities():
    return fill(Ending(nn.Softmax(dim=1)))


class Swish(nn.Module):
    """An activation of one's own: no parameters, a function from torch inside."""

    def forward(self, x):
        return x * torch.sigmoid(x)


class Sorting(nn.Module):
    """Its second layer sees the samples in another order."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(FEATURES, 9), nn.Linear(9, 9), nn.Linear(9, CLASSES)

    def forward(self, x):
        order = x[:, 0].argsort(descending=True)
        hidden = torch.relu(self.first(x)).index_select(0, order)
        return self.head(torch.relu(self.second(hidden)).index_select(0, order.argsort()))


class Gated(nn.Module):
    """Two branches are multiplied: what follows the gate's field is not affine, least of all without `offset`."""

    def __init__(self, offset):
        super().__init__()
        self.offset = offset
        self.value = nn.Linear(FEATURES, 8, bias=False)
        self.gate = nn.Linear(FEATURES, 8, bias=False)
        self.out = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.out((self.offset + self.value(x)) * torch.sigmoid(self.gate(x)))


def layer_norm_mlp():
    return fill(nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, CLASSES)))


class Tokens(nn.Module):
    """Whole numbers in, so that without trainable parameters nothing has a gradient."""

    def __init__(self, activation=torch.relu):
        super().__init__()
        self.embed = nn.Embedding(10, 5)
        self.out = nn.Linear(15, CLASSES)
        self.activation = activation

    def forward(self, ids):
        return self.out(self.activation(self.embed(ids).flatten(1)))


def frozen(network):
    """No parameter asks for a gradient."""
    return network.requires_grad_(False)


def frozen_bn(network):
    """A network in training whose batch normalisations stay in evaluation mode."""
    network.train()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return network


# Convolutional ------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Two convolutions and a way round them."""

    def __init__(self, width, inplace):
        super().__init__()
        self.inplace = inplace
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=inplace)

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.inplace:
            out += x
        else:
            out = out + x
        return self.relu(out)


class ResidualCNN(nn.Module):
    """Stem with max-pooling, two residual blocks, a linear head; with `inplace` all that can be is written over."""

    FIELDS = ("bn", "blocks.0.bn1", "blocks.0.relu", "blocks.1.bn1", "blocks.1.relu")

    def __init__(self, inplace=True):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=inplace)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.blocks = nn.Sequential(Block(4, inplace), Block(4, inplace))
        self.head = nn.Linear(4 * 4 * 4, CLASSES)

    def forward(self, x):
        return self.head(self.blocks(self.pool(self.relu(self.bn(self.conv(x))))).flatten(1))


def residual_cnn(inplace=True):
    return fill(ResidualCNN(inplace))


#: A factory and its inputs for each kind of network that the tests know.
ZOO = {
    "batch-norm MLP": (bn_mlp, samples),
    "functional MLP": (functional_mlp, samples),
    "shared activation": (shared_mlp, samples),
    "repeated layer": (lambda: fill(Repeated()), samples),
    "in-place residual CNN": (residual_cnn, images),
    "single logit": (single_logit, samples),
    "softmax": (probabilities, samples),
    "own activation": (lambda: one_hidden(Swish()), samples),
    "frozen batch norm": (lambda: frozen_bn(bn_mlp()), samples),
    "frozen parameters": (lambda: frozen(functional_mlp()), samples),
    "layer norm": (layer_norm_mlp, samples),
}


# Activations and what reads them --------------------------------------------------------------------------------------


class Own(nn.Module):
    """A parameter-free module around a function, for instance an activation."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def fields_by_hooks(network, inputs, names):
    """Outputs of the named modules, copied at once."""
    network.eval()
    found = {}
    modules = dict(network.named_modules())
    handles = [
        modules[name].register_forward_hook(lambda m, i, output, name=name: found.update({name: output.clone()}))
        for name in names
    ]
    with torch.no_grad():
        network(inputs)
    for handle in handles:
        handle.remove()
    return {name: field.flatten(1) for name, field in found.items()}


class Moved(nn.Module):
    """Samples second, samples folded with windows in either order, samples mixed."""

    def __init__(self, how):
        super().__init__()
        self.how, self.fc = how, nn.Linear(2, 5)

    def forward(self, x):
        parts = x.reshape(len(x), 3, 2)
        moved = {
            "second": lambda: self.fc(parts.transpose(0, 1)),
            "last": lambda: self.fc(parts).permute(1, 2, 0),
            "folded": lambda: self.fc(parts.reshape(-1, 2)),
            "folded, fastest": lambda: self.fc(parts.transpose(0, 1).reshape(-1, 2)),
            "folded, second": lambda: self.fc(parts.reshape(1, -1, 2)),
            "mixed": lambda: self.fc(parts).flatten(1) @ self.fc(parts).flatten(1).T,
        }[self.how]()
        self.true = self.fc(parts)
        # No output depends on other samples.
        return 0 * torch.tanh(moved).sum() + self.fc(x[:, :2])


class Head(nn.Module):
    """A parameter-free module of the user's around the last function."""

    def forward(self, z):
        return torch.sigmoid(z)


#: What turns the logits of :class:`Ending` into probabilities.
ENDS = {
    "nn.Sigmoid": nn.Sigmoid(),
    "torch.sigmoid": torch.sigmoid,
    "F.sigmoid": F.sigmoid,
    "Tensor.sigmoid": lambda z: z.sigmoid(),
    "torch.sigmoid_": torch.sigmoid_,
    "torch.special.expit": torch.special.expit,
    "own module": Head(),
    "nn.Softmax": nn.Softmax(dim=1),
    "F.softmax": lambda z: F.softmax(z, dim=1),
    "torch.softmax": lambda z: torch.softmax(z, 1),
    "Tensor.softmax": lambda z: z.softmax(1),
    "nn.LogSoftmax": nn.LogSoftmax(dim=1),
    "F.log_softmax": lambda z: F.log_softmax(z, dim=1),
    "Tensor.log_softmax": lambda z: z.log_softmax(1),
}
