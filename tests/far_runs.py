"""Evaluations on a device that is far away, beside the same ones on the CPU; writes what was found as JSON.

Run in a process of its own by ``test_waits``. Of each evaluation there are its waits, ``[part, operation, place]``, and
the numbers that are not those of the CPU. Parts are ``look`` (at the probes, before all), ``begin`` (what depends on
no answer is asked), ``search`` (what depends on who is right), and ``finish`` (answers are read).
"""

import copy
import json
import sys
import warnings
from collections import Counter
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn

import far
import netdyn
from netdyn._utils import transit
from netdyn._utils.distributed import Crew
from netdyn.engine import evaluate as examine
from netdyn.engine.config import Settings
from netdyn.engine.evaluate import _Examination
from netdyn.engine.layers import LayerReader
from netdyn.engine.memory import Memory
from netdyn.isolation.isolated import isolated
from netdyn.probes.evaluator import Walk
from netdyn.probes.probe import Probe
from networks import CLASSES, Sorting, bn_mlp, fill, images, samples

S = 96
STARTS = ("begin_walk", "_search", "_finish")
PARTS = ("look", "begin", "search", "finish")


def mlp(width=24, depth=2, activation=nn.ReLU, outputs=CLASSES):
    widths = [6, *[width] * depth]
    hidden = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), activation())]
    return fill(nn.Sequential(*hidden, nn.Linear(width, outputs)))


def convolutional():
    return fill(
        nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * 16, CLASSES),
        )
    )


class Attention(nn.Module):
    """Twelve numbers as six steps of two, through an encoder layer."""

    def __init__(self):
        super().__init__()
        self.into = nn.Linear(2, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(self.layer(self.into(x.reshape(len(x), -1, 2))).mean(dim=1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.RNN(2, 5, batch_first=True), nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.head(self.layer(x.reshape(len(x), -1, 2))[0][:, -1])


class Softened(nn.Module):
    """An activation of somebody's own making."""

    def forward(self, x):
        return nn.functional.softplus(x) - 0.5


class InAnotherType(nn.Module):
    """Probabilities that are handed on in another type, as in mixed precision."""

    def __init__(self):
        super().__init__()
        self.body = mlp(outputs=1)

    def forward(self, x):
        return torch.sigmoid(self.body(x)).double()


class Folded(nn.Module):
    """Six numbers as three steps of two, one after the other: ``[steps·samples, 2]``."""

    def __init__(self):
        super().__init__()
        self.step, self.head = nn.Linear(2, 5), nn.Linear(15, CLASSES)

    def forward(self, x):
        steps = torch.relu(self.step(x.reshape(len(x), 3, 2).transpose(0, 1).reshape(-1, 2)))
        return self.head(steps.reshape(3, len(x), 5).transpose(0, 1).flatten(1))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.rest = nn.Embedding(20, 2), mlp()

    def forward(self, ids):
        return self.rest(self.embedding(ids).flatten(1))


def said(network, x):
    """The network's own answers as labels, some of them changed: an accuracy of 0.9."""
    with torch.no_grad():
        labels = network.eval()(x).float().argmax(dim=1)
    labels[::10] = (labels[::10] + 1) % CLASSES
    return labels


def on_the_host(outputs, target):
    """A criterion that waits for what it looks at."""
    return outputs.cpu().argmax(dim=1) == target.cpu()


def classifier(network, x, **options):
    return network, x, said(network, x), options


def case(name):
    """A network, its inputs, its targets and the settings."""
    words = torch.randint(20, (S, 3), generator=torch.Generator().manual_seed(0))
    made = {
        "plain": lambda: classifier(mlp(), samples(S)),
        "wide": lambda: classifier(mlp(width=48), samples(S)),
        "deep": lambda: classifier(mlp(depth=6), samples(S)),
        "many rays": lambda: classifier(mlp(), samples(S), weight_rays=16, sample_rays=4),
        "batches": lambda: classifier(mlp(), samples(S), batch_size=40),
        "norms": lambda: classifier(fill(bn_mlp()), samples(S)),
        "images": lambda: classifier(convolutional(), images(S)),
        "not monotone": lambda: classifier(mlp(activation=nn.GELU), samples(S)),
        "attention": lambda: classifier(fill(Attention()), samples(S, shape=(12,))),
        "recurrent": lambda: classifier(fill(Recurrent()), samples(S, shape=(12,))),
        "own activation": lambda: classifier(mlp(activation=Softened), samples(S)),
        "folded": lambda: classifier(fill(Folded()), samples(S)),
        "sorting": lambda: classifier(fill(Sorting()), samples(S)),
        "words": lambda: classifier(fill(Words()), words, noise_at=["embedding"]),
        "each weight": lambda: classifier(mlp(), samples(S), weight_layers="each", normalization="global"),
        "low precision": lambda: classifier(mlp().to(torch.bfloat16), samples(S).to(torch.bfloat16)),
        "few classes of many": lambda: classifier(mlp(), samples(S), max_classes=3, max_units=10),
        "nobody right": lambda: (net := mlp(), samples(S), (said(net, samples(S)) + 2) % CLASSES, {}),
        "one logit": lambda: (net := mlp(outputs=1), samples(S), (net.eval()(samples(S))[:, 0] > 0).long(), {}),
        "one probability": lambda: (
            net := InAnotherType(),
            samples(S),
            (net.eval()(samples(S))[:, 0] > 0.5).long(),
            {},
        ),
        "answers on the host": lambda: classifier(mlp(), samples(S), criterion=on_the_host),
        "numbers": lambda: (mlp(outputs=2), samples(S), samples(S, 5, (2,)), {}),
    }
    return made[name]() if name else list(made)


def evaluated(network, probe, held_out, settings, memory):
    """The numbers of one evaluation, its waits with the part of it that each was in, and what was done in each part."""
    far.WAITS.clear()
    waits, done = [0], [Counter()]

    def begins(part, real):
        def begun(*args, **kwargs):
            # A walk begins for each probe.
            if PARTS[len(done)] == part:
                waits.append(len(far.WAITS))
                done.append(Counter())
            return real(*args, **kwargs)

        return begun

    def counts(name, real):
        def counted(*args, **kwargs):
            done[-1][name] += 1
            return real(*args, **kwargs)

        return counted

    with ExitStack() as patched:
        patched.enter_context(isolated(network))
        for part, owner, name in zip(PARTS[1:], [examine, *[_Examination] * 2], STARTS, strict=True):
            patched.enter_context(patch.object(owner, name, begins(part, getattr(owner, name))))
        for owner, name in ((Walk, "outputs"), (LayerReader, "read"), (transit.Coming, "arrived")):
            patched.enter_context(patch.object(owner, name, counts(name, getattr(owner, name))))
        patched.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        report = examine.examine(network, probe, settings, Crew(), False, held_out=held_out, memory=memory)
    parts = [name for name, (a, b) in zip(PARTS, pairwise([*waits, len(far.WAITS)]), strict=True) for _ in range(a, b)]
    return report.scalars(), [[part, *wait] for part, wait in zip(parts, far.WAITS, strict=True)], done


def differing(near, away):
    """Numbers that are not the same, NaN being itself."""
    tags = [tag for tag in near.keys() | away.keys() if repr(near.get(tag)) != repr(away.get(tag))]
    return {tag: [near.get(tag), away.get(tag)] for tag in tags}


def compared(name):
    """One case here and there, each twice, the second time from where rays were lost in the first."""
    network, x, target, options = case(name)
    settings, network = Settings(**options), network.eval()
    away = copy.deepcopy(network).to(far.DEVICE)
    memories = Memory(), Memory()
    probes = Probe(x, target), Probe(x[:40], target[:40])
    there = [probe.to(far.DEVICE) for probe in probes]
    found = []
    for _ in range(2):
        near, _, done_here = evaluated(network, *probes, settings, memories[0])
        numbers, waits, done = evaluated(away, *there, settings, memories[1])
        assert done == done_here
        done = dict(zip(PARTS, done, strict=True))
        found.append({"waits": waits, "differ": differing(near, numbers), "numbers": len(numbers), "done": done})
    return found


def noticed():
    """What the device notes of single operations."""
    x, into = torch.arange(4.0).to(far.DEVICE), torch.empty(4)
    near, far_away = torch.tensor([1, 2]), torch.tensor([1, 2]).to(far.DEVICE)
    flags = x > 1
    works = {
        "number": lambda: float(x.sum()),
        "flag": lambda: bool(flags.any()),
        "list": lambda: x.tolist(),
        "copy": lambda: x.cpu(),
        "copy into": lambda: into.copy_(x),
        "sent at once": lambda: torch.ones(3).to(far.DEVICE),
        "where": lambda: flags.nonzero(),
        "by flags": lambda: x[flags],
        "by flags, written": lambda: x.clone().index_put_((flags,), torch.zeros((), device=far.DEVICE)),
        "by numbers of the host": lambda: x[near],
        "equal": lambda: torch.equal(x, x),
        "distinct": lambda: torch.unique(x),
        "counted": lambda: torch.bincount(far_away),
        "sum": lambda: x.sum(),
        "sorted": lambda: torch.sort(x),
        "chosen": lambda: x.index_select(0, far_away),
        "sent": lambda: transit.sent(torch.ones(3), far.DEVICE),
        "coming": lambda: transit.Coming(x).arrived(),
    }
    counts = {}
    for name, work in works.items():
        far.WAITS.clear()
        work()
        counts[name] = len(far.WAITS)
    return counts


def refused():
    """What it says where tensors of two devices meet."""
    try:
        torch.ones(2).to(far.DEVICE) + torch.ones(2)
    except RuntimeError as error:
        return [str(error)]
    return []


class Split(nn.Module):
    """A network whose last layer is on a device of its own."""

    def __init__(self, network, device):
        super().__init__()
        self.first, self.last, self.device = network[:-1], network[-1].to(device), device

    def forward(self, x):
        return self.last(self.first(x).to(self.device))


def split():
    """Radii of a network that predicts numbers, here and on two devices."""
    network, x, target, _ = case("numbers")
    radii = []
    for model in (Split(copy.deepcopy(network), device).eval() for device in ("cpu", far.DEVICE)):
        report = netdyn.diagnose(model, x, target, measure=["sample_basin", "weight_basin"], progress=False)
        radii.append([report.sample_basin.radius, report.weight_basin.radius])
    return radii


if __name__ == "__main__":
    runs = {name: compared(name) for name in case("")}
    found = {"noticed": noticed(), "refused": refused(), "split": split(), "cases": runs}
    Path(sys.argv[1]).write_text(json.dumps(found))
