"""What an evaluation and a training cost on a GPU: seconds, passes, operators, memory.

Needs only this package, torch and lightning, and timm if it is there. Prints two Markdown tables: one of evaluations,
whole and by measure, in seconds and in forward passes of the probe; and one of trainings of a ResNet-18 on 50,000 made
images of CIFAR's size with the callback and without, where a second run without it is the control. Takes less than
six minutes on a GPU of a data centre.

    python benchmarks/gpu.py [--device cuda] [--quick]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_run import quiet
from torch import Tensor, nn
from torch.utils.data import DataLoader
from workload import Batches, joined

from netdyn import DynamicsMonitor, diagnose
from netdyn.engine.config import MEASURES


class Block(nn.Module):
    """Two 3 × 3 convolutions, or a bottleneck of 1 × 1, 3 × 3 and 1 × 1, beside a shortcut."""

    def __init__(self, incoming: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        out = width * 4 if bottleneck else width
        sizes = [(incoming, width, 1, 1), (width, width, 3, stride), (width, out, 1, 1)]
        if not bottleneck:
            sizes = [(incoming, width, 3, stride), (width, width, 3, 1)]
        layers: list[nn.Module] = []
        for a, b, kernel, step in sizes:
            layers += [nn.Conv2d(a, b, kernel, step, kernel // 2, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        self.body = nn.Sequential(*layers[:-1])
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or incoming != out:
            self.shortcut = nn.Sequential(nn.Conv2d(incoming, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """The sum of body and shortcut."""
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet(blocks: Sequence[int], classes: int, bottleneck: bool, small: bool) -> nn.Sequential:
    """A residual network; for ``small`` images it begins with a 3 × 3 convolution and no pooling."""
    first = nn.Conv2d(3, 64, 3, 1, 1, bias=False) if small else nn.Conv2d(3, 64, 7, 2, 3, bias=False)
    layers: list[nn.Module] = [first, nn.BatchNorm2d(64), nn.ReLU()]
    if not small:
        layers.append(nn.MaxPool2d(3, 2, 1))
    width = 64
    for stage, number in enumerate(blocks):
        for block in range(number):
            own = 64 * 2**stage
            layers.append(Block(width, own, 2 if stage and not block else 1, bottleneck))
            width = own * 4 if bottleneck else own
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


class Attention(nn.Module):
    """A pre-norm encoder layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Attention and MLP, each beside a shortcut."""
        q, k, v = self.qkv(self.norms[0](x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.projection(mixed)
        return x + self.mlp(self.norms[1](x))


class ViT(nn.Module):
    """ViT-S/16, with the mean over patches instead of a class token."""

    def __init__(self, classes: int, width: int = 384, depth: int = 12, patch: int = 16, size: int = 224) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2, width))
        self.layers = nn.Sequential(*(Attention(width, width // 64) for _ in range(depth)), nn.LayerNorm(width))
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.layers(self.embed(images).flatten(2).mT + self.position).mean(dim=1))


def from_timm(name: str, classes: int) -> nn.Module | None:
    """The network as timm defines it, if timm is there."""
    try:
        import timm
    except ImportError:
        return None
    return timm.create_model(name, num_classes=classes)


@dataclass(frozen=True)
class Case:
    """A network, its images and how many of them pass at once."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    classes: int
    batch_size: int | None = None


def cases(quick: bool) -> dict[str, Case]:
    """The networks of the table; small ones to try the script."""
    if quick:
        return {
            "MLP 64-32-10": Case(lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), (64,), 10),
            "residual network": Case(lambda: resnet((1,), 10, False, True), (3, 8, 8), 10),
            "small ViT": Case(lambda: ViT(10, 64, 1, 4, 8), (3, 8, 8), 10, 64),
        }
    mlp = (nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    return {
        "MLP 784-256-256-10": Case(lambda: nn.Sequential(*mlp), (784,), 10),
        "ResNet-18, 32 × 32": Case(lambda: resnet((2, 2, 2, 2), 10, False, True), (3, 32, 32), 10),
        "ResNet-50, 224 × 224, K = 100": Case(
            lambda: from_timm("resnet50", 100) or resnet((3, 4, 6, 3), 100, True, False), (3, 224, 224), 100, 256
        ),
        "ViT-S/16, 224 × 224, K = 100": Case(
            lambda: from_timm("vit_small_patch16_224", 100) or ViT(100), (3, 224, 224), 100, 256
        ),
    }


def made(samples: int, shape: Sequence[int], classes: int, device: str) -> tuple[Tensor, Tensor]:
    """Images that belong to a class: a coarse pattern for each, and noise."""
    generator = torch.Generator(device).manual_seed(0)
    labels = torch.arange(samples, device=device) % classes
    if len(shape) == 1:
        pattern = torch.randn(classes, *shape, generator=generator, device=device)
    else:
        coarse = torch.randn(classes, shape[0], 4, 4, generator=generator, device=device)
        pattern = nn.functional.interpolate(coarse, size=tuple(shape[1:]))
    return pattern[labels] + torch.randn(samples, *shape, generator=generator, device=device), labels


def learnt(case: Case, device: str, samples: int, steps: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network after some steps on its probe; one that is wrong has no basin to search."""
    torch.manual_seed(0)
    network = case.build().to(device)
    x, y = made(samples, case.shape, case.classes, device)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    for step in range(steps):
        batch = torch.arange(128 * step, 128 * step + 128, device=device) % samples
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
        optimiser.step()
    return network.eval(), x, y


def seconds(device: str, work: Callable[[], object], repeats: int) -> float:
    """Median wall seconds until the device is done, after one run that does not count."""
    taken = []
    for _ in range(1 + repeats):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def wait(device: str) -> None:
    """Wait until the device is done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def kernels(device: str, work: Callable[[], object]) -> int:
    """Kernels that one run launches; on a CPU the operators that are not made of others."""
    on_gpu = device.startswith("cuda")
    kinds = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=kinds) as profile:
        work()
        wait(device)
    if on_gpu:
        return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())
    return sum(not event.cpu_children and event.name.startswith("aten::") for event in profile.events())


def peak(device: str, work: Callable[[], object]) -> str:
    """MiB beyond what was there before; a dash on a CPU."""
    if not device.startswith("cuda"):
        return "–"
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return f"{(torch.cuda.max_memory_allocated() - before) / 2**20:.0f}"


def evaluations(device: str, quick: bool) -> None:
    """Print the table of evaluations."""
    print("| network | forward pass | evaluation | " + " | ".join(f"`{name}`" for name in MEASURES), end="")
    print(" | kernels | MiB, evaluation | MiB, forward pass |\n|---|" + "---:|" * (len(MEASURES) + 5))
    for name, case in cases(quick).items():
        network, x, y = learnt(case, device, 128 if quick else 1024, 5 if quick else 60)

        def forward(network: nn.Module = network, x: Tensor = x, size: int | None = case.batch_size) -> None:
            with torch.no_grad():
                for part in x.split(size or len(x)):
                    network(part)

        def whole(
            measure: Sequence[str] = MEASURES,
            network: nn.Module = network,
            data: tuple[Tensor, Tensor] = (x, y),
            size: int | None = case.batch_size,
        ) -> None:
            diagnose(network, *data, measure=measure, batch_size=size, progress=False)

        bare = seconds(device, forward, 3)
        cells = [f"{bare:.4f} s"]
        for work in (whole, *(lambda only=only, whole=whole: whole([only]) for only in MEASURES)):
            taken = seconds(device, work, 1)
            cells.append(f"{taken:.2f} s = {taken / bare:.0f}")
        cells += [str(kernels(device, whole)), peak(device, whole), peak(device, forward)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def trainings(device: str, quick: bool) -> None:
    """Print the table of trainings."""
    import lightning

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = resnet((1,) if quick else (2, 2, 2, 2), 10, False, True)

        def forward(self, images: Tensor) -> Tensor:
            return self.network(images)

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    images, labels = made(256 if quick else 50_000, (3, 8, 8) if quick else (3, 32, 32), 10, device)
    quiet()

    def run(options: dict[str, Any] | None) -> tuple[float, str, str]:
        lightning.seed_everything(0, verbose=False)
        callback = [] if options is None else [DynamicsMonitor(**options)]
        module = Classifier()
        with tempfile.TemporaryDirectory() as folder:
            trainer = lightning.Trainer(
                accelerator="cuda" if device.startswith("cuda") else "cpu",
                devices=1,
                max_epochs=1 if quick else 4,
                precision="bf16-mixed",
                callbacks=callback,
                logger=lightning.pytorch.loggers.TensorBoardLogger(Path(folder)),
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            loader = DataLoader(Batches(images, labels), 512, shuffle=True, collate_fn=joined)
            wait(device)
            start = time.perf_counter()
            trainer.fit(module, loader)
            wait(device)
            taken = time.perf_counter() - start
        overhead = f"{float(trainer.callback_metrics['netdyn/overhead']):.2f}" if callback else ""
        weights = torch.cat([parameter.detach().flatten().double().cpu() for parameter in module.parameters()])
        return taken, overhead, f"{float(weights.sum()):.12g}"

    run(None)
    print(
        "\n| ResNet-18, 50,000 images, bf16-mixed | seconds | × the run without | `netdyn/overhead` | sum of weights |"
    )
    print("|---|---:|---:|---:|---:|")
    base, _, sum_ = run(None)
    print(f"| without | {base:.2f} | 1 | | {sum_} |")
    for name, options in {
        "without, again": None,
        "defaults": {},
        '`figures="never"`': {"figures": "never"},
        "`max_overhead=0.05`": {"max_overhead": 0.05},
    }.items():
        taken, overhead, sum_ = run(options)
        print(f"| {name} | {taken:.2f} | {taken / base:.2f} | {overhead} | {sum_} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script (default: cuda)")
    parser.add_argument("--quick", action="store_true", help="tiny networks and few images, to try the script")
    options = parser.parse_args(arguments)
    where = torch.cuda.get_device_name() if options.device.startswith("cuda") else "CPU"
    print(f"{where}, torch {torch.__version__}\n")
    evaluations(options.device, options.quick)
    trainings(options.device, options.quick)


if __name__ == "__main__":
    sys.exit(main())
