"""Number formats: Lightning's precisions and plugins, autocast by hand, matmul precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision
from torch import Tensor, nn

from integration.scenarios.base import CLASSES, FEATURES, Classifier, loader
from integration.untouched import Training

WIDTH = 12


def under(precision: str | None = None, plugin: Any = None, net: nn.Module | None = None, **options: Any) -> Training:
    trainer = {"precision": precision} if plugin is None else {"plugins": [plugin]}
    return Training(Classifier(net), loader(), loader(shuffle=False), trainer=trainer, **options)


def normless() -> nn.Module:
    return nn.Sequential(
        nn.Linear(FEATURES, WIDTH),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(WIDTH, WIDTH),
        nn.GELU(),
        nn.Linear(WIDTH, CLASSES),
    )


class Autocasting(Classifier):
    """Mixed precision by hand, inside ``forward``, the head outside of it."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = self.net[:-1](x)
        return self.net[-1](hidden.float())


def matmul_precision(precision: str) -> Training:
    def fit(trainer: L.Trainer, training: Training) -> None:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            trainer.fit(training.module, training.train, training.val)
            assert torch.get_float32_matmul_precision() == precision
        finally:
            torch.set_float32_matmul_precision(before)

    return under("32-true", stages=fit)


def scaled() -> Training:
    """Half precision with a loss scaler, whose scale grows and falls with the gradients."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=2)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    return under(plugin=plugin, net=normless(), watched={"scaler": scaler.state_dict})


class Doubled(Classifier):
    """Turns itself and its batches into double precision, without telling the trainer."""

    def __init__(self) -> None:
        super().__init__()
        self.double()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        x, y = batch
        return x.double(), y


class MixedParts(Classifier):
    """A network in two formats, as it is after loading part of it in half."""

    def __init__(self) -> None:
        super().__init__(normless())
        self.net[3].to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.net[:3](x)
        return self.net[4:](self.net[3](hidden.bfloat16()).float())


SCENARIOS: dict[str, Callable[[], Training]] = {
    "bf16_mixed": lambda: under("bf16-mixed"),
    "bf16_true": lambda: under("bf16-true", net=normless()),
    "bf16_true_batch_norm": lambda: under("bf16-true"),
    "64_true": lambda: under("64-true"),
    "32_true_matmul_medium": lambda: matmul_precision("medium"),
    "32_true_matmul_high": lambda: matmul_precision("high"),
    "plugin_bf16_mixed": lambda: under(plugin=MixedPrecision("bf16-mixed", "cpu")),
    "plugin_bf16_true": lambda: under(plugin=HalfPrecision("bf16-true")),
    "plugin_64_true": lambda: under(plugin=DoublePrecision()),
    "plugin_16_mixed_with_a_scaler": scaled,
    "autocast_in_forward": lambda: Training(Autocasting(), loader(), loader(shuffle=False)),
    "double_without_the_trainer": lambda: Training(Doubled(), loader(), loader(shuffle=False)),
    "two_formats_in_one_network": lambda: Training(MixedParts(), loader(), loader(shuffle=False)),
}
