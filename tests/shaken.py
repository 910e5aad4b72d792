"""Networks whose weights are disturbed, and what they consist of."""

import torch
from torch import nn


def mlp(seed=0, bias=True):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        names = {
            "fc1": nn.Linear(6, 16, bias),
            "act1": nn.ReLU(),
            "fc2": nn.Linear(16, 16, bias),
            "act2": nn.Tanh(),
            "head": nn.Linear(16, 3, bias),
        }
    network = nn.Sequential()
    for name, module in names.items():
        network.add_module(name, module)
    return network


def states(network):
    """All that a network consists of, by name."""
    return {name: value.detach().clone() for name, value in [*network.named_parameters(), *network.named_buffers()]}


class Everything(nn.Module):
    """Weights of all kinds: convolution, embedding, normalisation, a tied head, matrices that are no parameters."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm1d(8)
        self.frozen = nn.Parameter(torch.eye(8) + 0.1, requires_grad=False)
        self.scale = nn.Parameter(torch.ones(()))
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("matrix", torch.eye(8))
        self.register_buffer("steps", torch.zeros(2, 2, dtype=torch.int64))

    def forward(self, ids):
        h = torch.relu(self.norm(self.conv(self.embed(ids).transpose(1, 2)))).mean(dim=2)
        return self.head(h @ self.frozen @ self.matrix) * self.scale


def spreads(network):
    return {name: value.std(correction=0).item() for name, value in states(network).items() if value.ndim > 1}


def uneven():
    """Three matrices of quite different spread and mean."""
    network = mlp(bias=False)
    with torch.no_grad():
        for i, weight in enumerate(network.parameters()):
            weight.copy_(weight / weight.std(correction=0) * 10.0 ** (i - 1) + i)
    return network
