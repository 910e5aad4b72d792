"""The networks of the labelled trainings; all take flat images ``[samples, pixels]``."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """x + f(x), f a hidden layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.act, self.outer = nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """The sum."""
        return x + self.outer(self.act(self.inner(x)))


class Block(nn.Module):
    """A transformer block with one head, written out so that it can be differentiated twice everywhere."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.inner, self.act, self.outer = nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[samples, tokens, width]``."""
        q, k, v = self.qkv(self.before(x)).chunk(3, dim=-1)
        x = x + self.out((q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(dim=-1) @ v)
        return x + self.outer(self.act(self.inner(self.between(x))))


class Transformer(nn.Module):
    """The rows of an image are its tokens."""

    def __init__(self, width: int, depth: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.embed, self.place = nn.Linear(side, width), nn.Parameter(0.1 * torch.randn(side, width))
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        tokens = self.embed(x.reshape(len(x), self.side, self.side)) + self.place
        return self.head(self.norm(self.blocks(tokens)).mean(dim=1))


def make(family: str, width: int, depth: int, side: int) -> nn.Module:
    """A network of a family for images of ``side × side`` pixels and ten classes.

    >>> [make(f, 8, 2, 8)(torch.rand(3, 64)).shape[1] for f in ("mlp", "gelu", "norm", "cnn", "cnn_norm", "residual")]
    [10, 10, 10, 10, 10, 10]
    """
    if family == "transformer":
        return Transformer(width, depth, side)
    if family == "residual":
        blocks = [Residual(width) for _ in range(depth)]
        return nn.Sequential(nn.Linear(side * side, width), *blocks, nn.ReLU(), nn.Linear(width, 10))
    layers: list[nn.Module] = []
    if family.startswith("cnn"):
        layers.append(nn.Unflatten(1, (1, side, side)))
        channels = 1
        for stage in range(depth):
            layers.append(nn.Conv2d(channels, width << stage, 3, stride=1 + (stage > 0), padding=1))
            layers += [nn.BatchNorm2d(width << stage)] if "norm" in family else []
            layers += [nn.ReLU()]
            channels = width << stage
        return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.LazyLinear(10))
    inputs = side * side
    for _ in range(depth):
        layers += [nn.Linear(inputs, width), *([nn.BatchNorm1d(width)] if family == "norm" else [])]
        layers += [nn.GELU() if family == "gelu" else nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, 10))
