"""Trainings that differ in how they run: loops, optimisers, cadences, and other callbacks at work."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch import callbacks as available
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
    Timer,
)
from torch import Tensor, nn

from integration.scenarios.base import CLASSES, FEATURES, Classifier, dataset, loader, network, points
from integration.untouched import Training

SCENARIOS: dict[str, Callable[[], Training]] = {}


def scenario(build: Callable[[], Training]) -> Callable[[], Training]:
    """Put a builder on the list, under its own name."""
    SCENARIOS[build.__name__] = build
    return build


def plain(samples: int = 64, module: L.LightningModule | None = None, **trainer: Any) -> Training:
    """A plain classifier with arguments for the trainer."""
    return Training(module or Classifier(), loader(dataset(samples)), loader(shuffle=False), trainer=trainer)


def _trainer(samples: int = 64, evaluations: int = 2, **arguments: Any) -> Callable[[], Training]:
    def build() -> Training:
        training = plain(samples, **arguments)
        training.evaluations = evaluations
        return training

    return build


def _monitor(evaluations: int, samples: int = 64, trainer: Any = None, **arguments: Any) -> Callable[[], Training]:
    def build() -> Training:
        training = plain(samples, **(trainer or {}))
        training.monitor, training.evaluations = arguments, evaluations
        return training

    return build


def fit(trainer: L.Trainer, training: Training) -> None:
    """Fit on what the training has."""
    trainer.fit(training.module, training.train, training.val)


# --- the trainer's arguments ---------------------------------------------------------------------------------------

# 72 samples are 5 batches, the last one of 8.
SCENARIOS |= {
    "accumulation_of_2": _trainer(72, 3, accumulate_grad_batches=2),
    "accumulation_of_3": _trainer(72, 3, accumulate_grad_batches=3),
    "accumulation_longer_than_an_epoch": _trainer(evaluations=3, accumulate_grad_batches=7),
    "gradients_clipped_by_norm": _trainer(gradient_clip_val=0.1, gradient_clip_algorithm="norm"),
    "gradients_clipped_by_value": _trainer(gradient_clip_val=0.01, gradient_clip_algorithm="value"),
    "validation_twice_an_epoch": _trainer(evaluations=3, val_check_interval=0.5),
    "validation_after_three_batches": _trainer(evaluations=3, val_check_interval=3),
    "validation_across_epochs": _trainer(
        evaluations=4, val_check_interval=6, check_val_every_n_epoch=None, max_epochs=3
    ),
    "validation_every_other_epoch": _trainer(evaluations=4, check_val_every_n_epoch=2, max_epochs=3),
    "validation_every_other_epoch_without_sanity_check": _trainer(
        evaluations=4, check_val_every_n_epoch=2, max_epochs=3, num_sanity_val_steps=0
    ),
    "two_sanity_steps": _trainer(evaluations=3, num_sanity_val_steps=2),
    "no_sanity_check": _trainer(evaluations=3, num_sanity_val_steps=0),
    "all_sanity_steps": _trainer(evaluations=3, num_sanity_val_steps=-1),
    "limits_in_batches": _trainer(evaluations=3, limit_train_batches=3, limit_val_batches=1),
    "limits_in_shares": _trainer(evaluations=3, limit_train_batches=0.5, limit_val_batches=0.5),
    "no_validation_batches": _trainer(evaluations=3, limit_val_batches=0),
    "max_steps_within_an_epoch": _trainer(evaluations=3, max_steps=6, max_epochs=-1),
    "max_steps_within_accumulation": _trainer(72, 2, max_steps=4, max_epochs=-1, accumulate_grad_batches=2),
    "min_steps": _trainer(evaluations=3, min_steps=10, max_epochs=3),
    "log_every_three_steps": _trainer(evaluations=3, log_every_n_steps=3),
    "without_inference_mode": _trainer(evaluations=3, inference_mode=False),
    "detect_anomaly": _trainer(evaluations=3, detect_anomaly=True),
    "simple_profiler": _trainer(evaluations=3, profiler="simple"),
    "fast_dev_run": _trainer(evaluations=1, fast_dev_run=True),
    "fast_dev_run_of_three_batches": _trainer(evaluations=1, fast_dev_run=3),
    "deterministic": _trainer(evaluations=3, deterministic="warn"),
}


def quietly(*sentences: str) -> Callable[[L.Trainer, Training], None]:
    """A fit during which these warnings of Lightning's are expected."""

    def run(trainer: L.Trainer, training: Training) -> None:
        with warnings.catch_warnings():
            for sentence in sentences:
                warnings.filterwarnings("ignore", sentence)
            fit(trainer, training)

    return run


def _overfit(batches: int | float) -> Callable[[], Training]:
    def build() -> Training:
        training = plain(overfit_batches=batches)
        training.train = training.val = None
        training.module = OwnLoaders()
        training.stages = quietly("You requested to overfit")
        return training

    return build


class OwnLoaders(Classifier):
    """Makes its own loaders, of a batch size that can be changed, and counts them."""

    def __init__(self, batch_size: int = 16) -> None:
        super().__init__()
        self.batch_size, self.made = batch_size, 0

    def train_dataloader(self) -> Any:
        self.made += 1
        return loader(dataset(seed=self.made), batch_size=self.batch_size)

    def val_dataloader(self) -> Any:
        self.made += 1
        return loader(dataset(32, seed=1), shuffle=False)


SCENARIOS |= {"overfit_two_batches": _overfit(2), "overfit_half_the_batches": _overfit(0.5)}


@scenario
def loaders_reloaded_every_epoch() -> Training:
    return Training(OwnLoaders(), trainer={"reload_dataloaders_every_n_epochs": 1, "max_epochs": 3}, evaluations=4)


# --- when the monitor measures -------------------------------------------------------------------------------------

SCENARIOS |= {
    "every_third_step": _monitor(3, every_n_train_steps=3),
    "report_and_figures_at_the_end": _monitor(3, report=True, figures="always"),
    "every_step": _monitor(9, every_n_train_steps=1),
    "every_second_step_under_accumulation": _monitor(4, 72, {"accumulate_grad_batches": 2}, every_n_train_steps=2),
    "every_other_epoch": _monitor(3, trainer={"max_epochs": 4}, every_n_epochs=2),
    "logarithmic_schedule": _monitor(6, schedule="log"),
    "listed_steps": _monitor(4, schedule=[1, 5]),
    "not_at_the_ends": _monitor(2, on_fit_ends=False),
    "with_a_prefix": _monitor(3, prefix="netdyn"),
    "weights_layer_by_layer": _monitor(3, weight_layers="each"),
    "in_small_batches": _monitor(3, batch_size=7),
}


# --- optimisers and schedulers -------------------------------------------------------------------------------------


class TwoOptimizers(Classifier):
    """Manual optimisation: two optimisers step in every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        for optimizer in self.optimizers():
            loss = self.loss(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
            optimizer.step()
        for scheduler in self.lr_schedulers():
            scheduler.step()
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        first = torch.optim.Adam(self.net[0].parameters(), lr=0.01)
        second = torch.optim.SGD(self.net[4:].parameters(), lr=0.05, momentum=0.9)
        return [first, second], [torch.optim.lr_scheduler.StepLR(o, step_size=3) for o in (first, second)]


class TwoInTurn(TwoOptimizers):
    """Manual optimisation: the optimisers take turns, and gradients wait from batch to batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.manual_backward(loss)
        if batch_idx % 3 != 2:
            optimizer = self.optimizers()[batch_idx % 2]
            optimizer.step()
            optimizer.zero_grad()
        self.log("train_loss", loss)
        return loss


def _with(
    module: type[L.LightningModule], evaluations: int, trainer: Any = None, **monitor: Any
) -> Callable[[], Training]:
    return lambda: Training(
        module(), loader(), loader(shuffle=False), trainer or {}, monitor=monitor, evaluations=evaluations
    )


SCENARIOS |= {
    "two_manual_optimizers": _with(TwoOptimizers, 3),
    "two_manual_optimizers_every_third_step": _with(TwoOptimizers, 4, every_n_train_steps=3),
    "two_manual_optimizers_every_fourth_step": _with(TwoOptimizers, 5, every_n_train_steps=4),
    "two_manual_optimizers_in_turn": _with(TwoInTurn, 3),
    "two_manual_optimizers_in_turn_every_step": _with(TwoInTurn, 5, every_n_train_steps=1),
}


class OneCycle(Classifier):
    """A scheduler that steps with every batch."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        total = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Plateau(Classifier):
    """A scheduler that reads the validation loss."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.5)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


class Newton(Classifier):
    """An optimiser that calls its closure several times a step."""

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=4)


class OwnStep(Classifier):
    """Takes the optimiser step and clears gradients in its own hooks."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 + self.trainer.global_step)
        optimizer.step(closure=optimizer_closure)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        optimizer.zero_grad(set_to_none=False)


class SkipsBatches(Classifier):
    """Leaves out a batch by returning no loss."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        return None if batch_idx == 1 else super().training_step(batch, batch_idx)


class ShortEpochs(Classifier):
    """Ends its epochs early."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 3 else None


class FrozenHalf(Classifier):
    """Trains its last layer only."""

    def __init__(self) -> None:
        super().__init__()
        self.net[:4].requires_grad_(False)


SCENARIOS |= {
    "one_cycle_by_steps": _with(OneCycle, 3),
    "one_cycle_under_accumulation": _with(OneCycle, 3, {"accumulate_grad_batches": 3}),
    "plateau_of_validation_loss": _with(Plateau, 5, {"max_epochs": 4}),
    "closure_called_several_times": _with(Newton, 3),
    "own_optimizer_step": _with(OwnStep, 3),
    "epochs_ended_by_the_module": _with(ShortEpochs, 3),
    "half_of_the_network_frozen": _with(FrozenHalf, 3),
}


@scenario
def batches_left_out_by_the_module() -> Training:
    training = plain(module=SkipsBatches())
    training.stages = quietly("`training_step` returned `None`")
    return training


# --- other callbacks -----------------------------------------------------------------------------------------------


def beside(*callbacks: Callable[[], Callback], evaluations: int = 3, **trainer: Any) -> Callable[[], Training]:
    """A plain training with other callbacks."""

    def build() -> Training:
        training = plain(**trainer)
        training.callbacks, training.evaluations = [make() for make in callbacks], evaluations
        return training

    return build


SCENARIOS |= {
    "early_stopping": beside(
        lambda: EarlyStopping("val_loss", patience=0, min_delta=10.0), evaluations=3, max_epochs=5
    ),
    "early_stopping_after_min_epochs": beside(
        lambda: EarlyStopping("val_loss", patience=0, min_delta=10.0), evaluations=4, min_epochs=3, max_epochs=5
    ),
    "early_stopping_on_training_loss_by_steps": beside(
        lambda: EarlyStopping("train_loss_epoch", patience=1, check_on_train_epoch_end=True), max_epochs=3
    ),
    "accumulation_schedule": beside(lambda: GradientAccumulationScheduler({0: 1, 1: 3}), max_epochs=2),
    "learning_rate_monitor": beside(lambda: LearningRateMonitor("step")),
    "timer": beside(lambda: Timer(interval="step")),
}


@scenario
def stochastic_weight_averaging() -> Training:
    callback = StochasticWeightAveraging(swa_lrs=0.02, swa_epoch_start=1, annealing_epochs=1)
    training = plain(max_epochs=3)
    training.callbacks, training.evaluations = [callback], 4
    training.watched["average"] = lambda: callback._average_model.state_dict()
    return training


@scenario
def stochastic_weight_averaging_without_batch_norm() -> Training:
    callback = StochasticWeightAveraging(swa_lrs=0.02, swa_epoch_start=0.5)
    net = nn.Sequential(nn.Linear(FEATURES, 12), nn.ReLU(), nn.Dropout(0.1), nn.Linear(12, CLASSES))
    training = plain(module=Classifier(net), max_epochs=4)
    training.callbacks, training.evaluations = [callback], 5
    training.watched["average"] = lambda: callback._average_model.state_dict()
    return training


def _averaged(make: Callable[[], Any]) -> Callable[[], Training]:
    def build() -> Training:
        callback, training = make(), plain(max_epochs=3, val_check_interval=0.5)
        training.callbacks, training.evaluations = [callback], 4
        training.watched["average"] = lambda: callback._average_model.state_dict()
        return training

    return build


# Not every version has them.
if hasattr(available, "WeightAveraging"):
    SCENARIOS["weight_averaging"] = _averaged(lambda: available.WeightAveraging())
if hasattr(available, "EMAWeightAveraging"):
    SCENARIOS["exponential_weight_averaging"] = _averaged(lambda: available.EMAWeightAveraging(decay=0.7))


class SwapForValidation(Callback):
    """Keeps an exponential average by hand, and validates it: weights are exchanged from start to end of validation."""

    def __init__(self) -> None:
        self.average: list[Tensor] = []
        self.kept: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        now = [p.detach() for p in pl_module.parameters()]
        old = self.average or now
        self.average = [0.8 * a + 0.2 * b for a, b in zip(old, now, strict=True)]

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if self.average:
            self.kept = [p.detach().clone() for p in pl_module.parameters()]
            self._put(pl_module, self.average)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if self.kept:
            self._put(pl_module, self.kept)
            self.kept = []

    @staticmethod
    def _put(pl_module: Any, values: list[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(pl_module.parameters(), values, strict=True):
                parameter.copy_(value)


@scenario
def weights_swapped_for_validation() -> Training:
    callback = SwapForValidation()
    training = plain(val_check_interval=0.5)
    training.callbacks, training.evaluations = [callback], 3
    training.watched["average"] = lambda: callback.average
    return training


@scenario
def learning_rate_finder() -> Training:
    callback = LearningRateFinder(min_lr=1e-4, max_lr=0.5, num_training_steps=12)
    training = plain()
    training.callbacks, training.evaluations = [callback], 3
    training.watched["found"] = lambda: [callback.optimal_lr.results, training.module.lr]
    return training


class FinderBetweenEpochs(LearningRateFinder):
    """Looks for a rate again when the second epoch starts."""

    def on_fit_start(self, *arguments: Any) -> None:
        return

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == 1:
            self.lr_find(trainer, pl_module)


@scenario
def learning_rate_finder_between_epochs() -> Training:
    callback = FinderBetweenEpochs(min_lr=1e-4, max_lr=0.5, num_training_steps=8)
    training = plain(max_epochs=3)
    training.callbacks, training.evaluations = [callback], 3
    training.watched["found"] = lambda: [callback.optimal_lr.results, training.module.lr]
    return training


@scenario
def batch_size_finder() -> Training:
    module = OwnLoaders(batch_size=4)
    callback = BatchSizeFinder(init_val=4, max_trials=1, steps_per_trial=2)
    training = Training(module, callbacks=[callback], evaluations=3)
    training.watched["found"] = lambda: [callback.optimal_batch_size, module.batch_size, module.made]
    return training


def saved(folder: Path) -> dict[str, Any]:
    """Name → weights, loops and optimiser states of the checkpoints in a folder."""
    keys = ("state_dict", "loops", "optimizer_states", "lr_schedulers", "global_step", "epoch")
    contents = {}
    for path in sorted(folder.rglob("*.ckpt")):
        checkpoint = torch.load(path, weights_only=False)
        contents[path.name] = {key: checkpoint[key] for key in keys}
    return contents


def _checkpoints(trainer: dict[str, Any] | None = None, **options: Any) -> Callable[[], Training]:
    def build() -> Training:
        callback = ModelCheckpoint(**options)
        training = plain(enable_checkpointing=True, max_epochs=3, **(trainer or {}))
        training.callbacks, training.evaluations = [callback], 4
        training.watched["checkpoints"] = lambda: saved(Path(callback.dirpath))
        training.watched["best"] = lambda: [callback.best_model_score, Path(callback.best_model_path).name]
        return training

    return build


SCENARIOS |= {
    "checkpoints_of_best_and_last": _checkpoints(
        save_last=True, monitor="val_loss", save_top_k=2, filename="{epoch}-{step}-{val_loss:.6f}"
    ),
    "checkpoints_by_steps": _checkpoints(every_n_train_steps=3, save_top_k=-1),
    "checkpoints_within_epochs": _checkpoints({"val_check_interval": 0.5}, monitor="val_loss", save_top_k=-1),
    "checkpoints_within_accumulation": _checkpoints(
        {"accumulate_grad_batches": 3}, every_n_train_steps=1, save_top_k=-1
    ),
}


class ReadsMetrics(Callback):
    """Decides by the trainer's metrics: halves the learning rate when the validation loss is high."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if float(trainer.callback_metrics["val_loss"]) > 0.1:
            for group in trainer.optimizers[0].param_groups:
                group["lr"] *= 0.5


class Drawing(Callback):
    """Draws random numbers in every hook that the monitor uses."""

    def __init__(self) -> None:
        self.drawn: list[float] = []

    def _draw(self, *arguments: Any, **named: Any) -> None:
        self.drawn.append(float(torch.rand(())))

    on_train_start = on_train_batch_start = on_train_batch_end = _draw
    on_validation_end = on_train_epoch_end = on_train_end = _draw


SCENARIOS["callback_that_reads_metrics"] = beside(ReadsMetrics)


@scenario
def callback_that_draws() -> Training:
    callback = Drawing()
    training = plain()
    training.callbacks, training.evaluations = [callback], 3
    training.watched["drawn"] = lambda: callback.drawn
    return training


# --- several stages ------------------------------------------------------------------------------------------------


def staged(stages: Callable[[L.Trainer, Training], None], evaluations: int = 3, **trainer: Any) -> Training:
    """A plain training of several stages."""
    training = plain(**trainer)
    training.stages, training.evaluations = stages, evaluations
    return training


@scenario
def fit_twice() -> Training:
    def stages(trainer: L.Trainer, training: Training) -> None:
        fit(trainer, training)
        trainer.fit_loop.max_epochs = 4
        fit(trainer, training)

    return staged(stages, 5)


@scenario
def fit_twice_on_a_stream() -> Training:
    def stages(trainer: L.Trainer, training: Training) -> None:
        fit(trainer, training)
        trainer.fit_loop.max_epochs = 4
        fit(trainer, training)

    training = staged(stages, 5)
    training.train = Shuffled()
    return training


class Shuffled:
    """A loader of its own making."""

    def __init__(self) -> None:
        self.x, self.y = points()

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Any:
        return ((self.x[part], self.y[part]) for part in torch.randperm(64).split(16))


@scenario
def fit_validate_test_predict() -> Training:
    results: list[Any] = []

    def stages(trainer: L.Trainer, training: Training) -> None:
        fit(trainer, training)
        results.append(trainer.validate(training.module, training.val, verbose=False))
        results.append(trainer.test(training.module, training.val, verbose=False))
        results.append(trainer.predict(training.module, training.val))

    training = staged(stages)
    training.watched["results"] = lambda: results
    return training


@scenario
def validate_before_fit_and_fit_again() -> Training:
    results: list[Any] = []

    def stages(trainer: L.Trainer, training: Training) -> None:
        results.append(trainer.validate(training.module, training.val, verbose=False))
        fit(trainer, training)
        results.append(trainer.test(training.module, training.val, verbose=False))
        trainer.fit_loop.max_epochs = 3
        fit(trainer, training)

    training = staged(stages, 4)
    training.watched["results"] = lambda: results
    return training


@scenario
def fit_and_resume_from_a_checkpoint() -> Training:
    def stages(trainer: L.Trainer, training: Training) -> None:
        fit(trainer, training)
        path = Path(trainer.default_root_dir, "end.ckpt")
        trainer.save_checkpoint(path)
        trainer.fit_loop.max_epochs = 4
        trainer.fit(training.module, training.train, training.val, ckpt_path=path)

    return staged(stages, 5)


@scenario
def stopped_from_outside() -> Training:
    class Stop(Callback):
        def on_train_batch_end(
            self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            trainer.should_stop = trainer.should_stop or trainer.global_step == 6

    training = plain(max_epochs=3)
    training.callbacks, training.evaluations = [Stop()], 3
    return training


def modes(module: nn.Module) -> Sequence[bool]:
    """The training flags."""
    return [child.training for child in module.modules()]


@scenario
def starts_in_eval_mode() -> Training:
    net = network()
    net[1].eval()
    training = plain(module=Classifier(net))
    training.stages = quietly("Found 1 module.*in eval mode")
    training.watched["modes"] = lambda: modes(net)
    return training
