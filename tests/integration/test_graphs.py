"""Graphs of unequal size in batches of an own kind: indices are the samples, and ``forward=`` collates them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from netdyn import DynamicsMonitor
from netdyn.functional import local_fields, weight_basin

GRAPHS, CLASSES = 60, 3
LABELS = torch.arange(GRAPHS) % CLASSES


@dataclass
class Batch:
    """Graphs side by side: nodes, edges between them, and the graph of each node."""

    nodes: Tensor
    edges: Tensor
    graph: Tensor
    count: int

    def to(self, device: Any) -> Batch:
        return Batch(self.nodes.to(device), self.edges.to(device), self.graph.to(device), self.count)


def graphs() -> list[tuple[Tensor, Tensor]]:
    """Between 3 and 7 nodes each, with features that tell the classes, and random edges."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for k, label in enumerate(LABELS.tolist()):
        size = 3 + k % 5
        nodes = torch.randn(size, 4, generator=generator) + 2 * torch.eye(4)[label]
        made.append((nodes, torch.randint(0, size, (2, 2 * size), generator=generator)))
    return made


DATA = graphs()


def collate(some: list[tuple[Tensor, Tensor]]) -> Batch:
    sizes = torch.tensor([len(nodes) for nodes, _ in some])
    starts = (sizes.cumsum(0) - sizes).tolist()
    edges = torch.cat([edges + start for (_, edges), start in zip(some, starts, strict=True)], 1)
    return Batch(torch.cat([n for n, _ in some]), edges, torch.arange(len(some)).repeat_interleave(sizes), len(some))


def collate_pairs(samples: list[tuple[tuple[Tensor, Tensor], int]]) -> tuple[Batch, Tensor]:
    return collate([graph for graph, _ in samples]), torch.tensor([label for _, label in samples])


class Network(L.LightningModule):
    """One step of messages, the mean over a graph's nodes, one hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Linear(4, 24), nn.Linear(24, 24)
        self.hidden, self.act, self.out = nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, CLASSES)

    def forward(self, batch: Batch) -> Tensor:
        h = self.embed(batch.nodes)
        h = self.mix(h + torch.zeros_like(h).index_add(0, batch.edges[1], h[batch.edges[0]]))
        total = torch.zeros(batch.count, 24).index_add(0, batch.graph, h)
        return self.out(self.act(self.hidden(total / torch.bincount(batch.graph, minlength=batch.count)[:, None])))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def by_index(network: nn.Module, index: Tensor) -> Tensor:
    return network(collate([DATA[i] for i in index.tolist()]).to(index.device))


def fitted(*callbacks: L.Callback) -> Network:
    L.seed_everything(0, verbose=False)
    module = Network()
    trainer = L.Trainer(
        max_epochs=4,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(list(zip(DATA, LABELS.tolist(), strict=True)), 15, True, collate_fn=collate_pairs))
    return module


@pytest.mark.filterwarnings("ignore:The largest noise level, `high`")
def test_graphs_of_unequal_size_are_measured_by_their_indices():
    index = torch.arange(GRAPHS)
    monitor = DynamicsMonitor(probe=(index, LABELS), forward=by_index, noise_at=["hidden"], weight_rays=6, strict=True)
    plain, module = fitted(), fitted(monitor)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), module.parameters(), strict=True))
    report, evaluations = monitor.report, monitor.monitor.evaluations
    assert report is not None
    assert evaluations == 5
    with torch.no_grad():
        alone = torch.cat([module(collate([graph])) for graph in DATA])
    assert report.accuracy == float((alone.argmax(1) == LABELS).float().mean()) > 0.8
    assert [layer.name for layer in report.layers] == ["hidden"]
    assert report.sample_basin is not None
    assert report.sample_basin.radius > 0


def test_fields_and_weights_are_those_of_graph_by_graph():
    module = fitted().eval()
    seen: list[Tensor] = []
    hook = module.hidden.register_forward_hook(lambda layer, inputs, output: seen.append(output.detach()))
    for graph in DATA:
        module(collate([graph]))
    hook.remove()
    index = torch.arange(GRAPHS)

    class ByIndex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, index: Tensor) -> Tensor:
            return by_index(self.module, index)

    fields = local_fields(ByIndex(), index)
    torch.testing.assert_close(fields["module.hidden"], torch.cat(seen))
    # In parts, and all at once: the network is the same.
    whole, parts = (weight_basin(ByIndex(), index, LABELS, rays=6, batch_size=size) for size in (None, 7))
    assert whole.radius == pytest.approx(parts.radius, rel=1e-4)


def test_a_batch_of_an_own_kind_without_a_recipe_is_told_before_the_first_step():
    monitor = DynamicsMonitor()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted(monitor)
    texts = [str(each.message) for each in caught if "netdyn" in str(each.message)]
    assert len(texts) == 1
    assert "samples first" in texts[0]
    assert "Batch" in texts[0]
    assert monitor.report is None
    assert monitor.monitor.evaluations == 0
