"""The suite bites: take one guard away, and a scenario shows it. And what holds when an evaluation fails half-way."""

from __future__ import annotations

import copy
import functools
import gc
import multiprocessing
import pickle
import re
import signal
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint, OnExceptionCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from integration.scenarios import data, modules, precision
from integration.scenarios.base import CLASSES, FEATURES, Classifier, loader, points
from integration.untouched import Recorder, Training, differences, digest, module_state, run
from netdyn import DynamicsMonitor, callback, diagnose
from netdyn.basins.weight_noise import WeightNoise
from netdyn.engine import evaluate
from netdyn.isolation import adapter, snapshot
from netdyn.isolation import isolated as isolation
from netdyn.linear import substitution
from netdyn.probes import loaders, reading
from netdyn.probes.probe import Probe
from netdyn.report import history
from netdyn.tracing import tracer

#: Some scenarios draw random numbers in their forward, and networks that learn for a few steps have basins at the edge.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The model is random in eval mode:UserWarning"),
    pytest.mark.filterwarnings("ignore:(Not all of the network can be read|The network mixes):UserWarning"),
    pytest.mark.filterwarnings("ignore:The radius lies below the smallest noise level:UserWarning"),
    pytest.mark.filterwarnings("ignore:The largest noise level, `high`:UserWarning"),
    pytest.mark.filterwarnings("ignore:`accuracy` is .*, but noise alone leaves:UserWarning"),
]

# --- scenarios that only this file needs -----------------------------------------------------------------------------


def plain() -> Training:
    return Training(Classifier(), loader(), loader(shuffle=False))


def accumulating() -> Training:
    """Three batches a step, so that a step is pending at the end of most batches."""
    return Training(
        Classifier(),
        loader(),
        loader(shuffle=False),
        trainer={"accumulate_grad_batches": 3},
        monitor={"every_n_train_steps": 1},
    )


def norm_frozen_each_epoch() -> Training:
    """Measured in the middle of the epochs, after the normalisation was frozen by hand."""
    return Training(modules.FrozenOnce(), loader(), loader(shuffle=False), monitor={"every_n_train_steps": 1})


def loader_with_generator() -> Training:
    generator = torch.Generator().manual_seed(3)
    return Training(
        Classifier(), loader(generator=generator), loader(shuffle=False), watched={"generator": lambda: generator}
    )


class Augmented(TensorDataset):
    """Adds noise from a generator that belongs to the data set."""

    def __init__(self) -> None:
        super().__init__(*points())
        self.generator = torch.Generator().manual_seed(5)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        x, y = super().__getitem__(index)
        return x + 0.1 * torch.randn(x.shape, generator=self.generator), y


def data_set_with_generator() -> Training:
    return Training(Classifier(), loader(Augmented()), loader(shuffle=False))


class Stream(IterableDataset):
    """Samples as dictionaries."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for x, y in zip(*points(), strict=True):
            yield {"x": x, "y": y}


class FromDict(Classifier):
    def loss(self, batch: Any) -> Tensor:
        return super().loss((batch["x"], batch["y"]))


def emptying(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return batch.pop("x"), batch.pop("y")


def unpack_that_empties() -> Training:
    stream = DataLoader(Stream(), batch_size=16)
    return Training(FromDict(), stream, stream, monitor={"unpack": emptying})


class Tally:
    """A criterion that counts its calls."""

    calls = 0

    def __call__(self, outputs: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        return outputs.argmax(dim=1) == target


def criterion_that_counts() -> Training:
    tally = Tally()
    return Training(
        Classifier(),
        loader(),
        loader(shuffle=False),
        monitor={"criterion": tally},
        watched={"tally": lambda: vars(tally)},
    )


def caching_without_layers() -> Training:
    """What it caches depends on the batch, and so would its layers."""
    training = modules.SCENARIOS["forward_caches"]()
    training.monitor["measure"] = ["sample_basin"]
    return training


def compiled_without_hooks() -> Training:
    training = modules.SCENARIOS["compiled_function"]()
    training.monitor["measure"] = ["sample_basin"]
    return training


# --- guards, taken away one at a time --------------------------------------------------------------------------------


class Without:
    """A module or namespace with some names replaced."""

    def __init__(self, original: Any, **replaced: Any) -> None:
        self.__dict__.update(original=original, **replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)


def nothing(*args: Any, **kwargs: Any) -> None:
    return None


def nothing_kept(value: Any) -> Callable[[], None]:
    return nothing


def no_context(*args: Any, **kwargs: Any) -> Any:
    return nullcontext()


def generators_not_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(isolation, "rng_restored", no_context)


def torch_generator_not_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(isolation, "torch", Without(torch, set_rng_state=nothing))


def numpy_generator_not_kept(patch: pytest.MonkeyPatch) -> None:
    np = isolation.np
    patch.setattr(isolation, "np", Without(np, random=Without(np.random, set_state=nothing)))


def python_generator_not_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(isolation, "random", Without(isolation.random, setstate=nothing))


def measured_on_the_original(patch: pytest.MonkeyPatch) -> None:
    """The copies are the originals, which nothing guards."""
    patch.setattr(isolation.Shadows, "_copy", lambda self, value, where: value)


def in_place(guard: Callable[[pytest.MonkeyPatch], None]) -> Callable[[pytest.MonkeyPatch], None]:
    """Take a guard away from a network that is measured in place, because it cannot be copied."""

    @functools.wraps(guard)
    def take_away(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(isolation, "_cannot_be_copied", lambda model: True)
        guard(patch)

    return take_away


@in_place
def nothing_restored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(snapshot.Snapshot, "restore", nothing)


@in_place
def tensors_not_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(snapshot, "_save_tensor", nothing_kept)


@in_place
def attributes_not_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(snapshot, "_save_dict", nothing_kept)


@in_place
def lists_not_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(snapshot, "_save_list", nothing_kept)


@in_place
def sets_not_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(snapshot, "_save_set", nothing_kept)


@in_place
def own_generators_not_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(snapshot, "_save_generator", nothing_kept)


@in_place
def arrays_not_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(snapshot, "_save_array", nothing_kept)


@in_place
def gradients_not_kept(patch: pytest.MonkeyPatch) -> None:
    """The map is taken by a backward pass, which adds to gradients; what hangs on parameters is not put back."""

    def grad(total: Tensor, edges: Any, **options: Any) -> Any:
        total.backward(retain_graph=True)
        return torch.autograd.grad(total, edges, **options)

    patch.setattr(substitution, "torch", Without(torch, autograd=Without(torch.autograd, grad=grad)))
    patch.setattr(snapshot, "_save_parameter", nothing_kept)


@in_place
def objects_not_followed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(snapshot, "_attributes", lambda value: [])


def modes_left_alone(patch: pytest.MonkeyPatch) -> None:
    """Measure in whatever mode the modules are: normalisations learn, dropouts draw (and are given back)."""

    @contextmanager
    def naive(*given: Any, **options: Any) -> Iterator[tuple[Any, ...]]:
        with isolation.rng_restored(), torch.no_grad():
            yield given

    patch.setattr(adapter, "isolated", naive)


def modes_by_eval_and_train(patch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def naive(model: nn.Module, *functions: Any, **options: Any) -> Iterator[tuple[Any, ...]]:
        training = model.training
        with isolation.rng_restored(), torch.no_grad():
            model.eval()
            yield model, *functions
            model.train(training)

    patch.setattr(adapter, "isolated", naive)


def compiled_code_runs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(isolation, "torch", Without(torch, compiler=Without(torch.compiler, set_stance=no_context)))


def inference_mode_not_left(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(isolation, "torch", Without(torch, inference_mode=no_context))


def logging_not_silenced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(isolation, "_quieten", nothing)


def loader_iterated(patch: pytest.MonkeyPatch) -> None:
    def first_batches(batches: Any, size: int, seed: int, transfer: Any, unpack: Any, *_: Any) -> Probe:
        return Probe(*(torch.cat(parts) for parts in zip(*map(unpack, batches), strict=True)))

    patch.setattr(callback, "read_probe", first_batches)


def data_set_not_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])  # it is read in this process
    patch.setattr(reading, "shadowed", lambda *things, **_: nullcontext(things))


def hooks_for_batches_not_kept(patch: pytest.MonkeyPatch) -> None:
    """The user's own functions are called, not copies of them, while the probe is read or gathered."""

    @contextmanager
    def naive(*given: Any, **options: Any) -> Iterator[list[Any]]:
        yield list(given)

    patch.setattr(callback, "shadowed", naive)


def batches_not_copied(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(loaders, "detached_copy", lambda batch: batch)


@in_place
def weights_shaken_in_place(patch: pytest.MonkeyPatch) -> None:
    """Add the noise and take it off again; the snapshot would put the weights back: both must be gone."""

    def shaken(self: WeightNoise, direction: dict[str, Tensor], sigma: float) -> Callable[[Any], Any]:
        def call(inputs: Any) -> Any:
            for name, weight in self.weights.items():
                weight += sigma * direction[name]
            outputs = self.model(inputs)
            for name, weight in self.weights.items():
                weight -= sigma * direction[name]
            return outputs

        return call

    patch.setattr(WeightNoise, "network", shaken)
    patch.setattr(snapshot, "_save_parameter", nothing_kept)


@in_place
def parameters_not_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(snapshot, "_save_parameter", nothing_kept)


@in_place
def hooks_left_behind(patch: pytest.MonkeyPatch) -> None:
    """Hooks are taken off after the run, and the snapshot would take them off too: both must be gone."""

    class Forgetful(ExitStack):
        def callback(self, *args: Any, **kwargs: Any) -> Any:
            return None

    patch.setattr(tracer, "ExitStack", Forgetful)
    kept = snapshot._save_dict
    patch.setattr(snapshot, "_save_dict", lambda d: nothing if isinstance(d, OrderedDict) else kept(d))


def measured_at_batch_start(patch: pytest.MonkeyPatch) -> None:
    """Measure a batch by the module's own training step, as it comes in."""

    def step(self: DynamicsMonitor, trainer: L.Trainer, module: L.LightningModule, batch: Any, index: int) -> None:
        with torch.no_grad():
            module.training_step(batch, index)

    patch.setattr(DynamicsMonitor, "on_train_batch_start", step)


GUARDS: list[tuple[Callable[[pytest.MonkeyPatch], None], Callable[[], Training], str]] = [
    (generators_not_kept, modules.SCENARIOS["forward_draws_from_global_generators"], "/generators/"),
    (torch_generator_not_kept, modules.SCENARIOS["forward_draws_from_global_generators"], "/generators/torch"),
    (numpy_generator_not_kept, modules.SCENARIOS["forward_draws_from_global_generators"], "/generators/numpy"),
    (python_generator_not_kept, modules.SCENARIOS["forward_draws_from_global_generators"], "/generators/python"),
    (measured_on_the_original, plain, "/training:"),
    (measured_on_the_original, modules.SCENARIOS["forward_averages_in_buffers"], "/content/_buffers"),
    (measured_on_the_original, modules.SCENARIOS["forward_fills_containers"], "/content/as_list"),
    (measured_on_the_original, modules.SCENARIOS["forward_draws_from_own_generators"], "/content/torch_generator"),
    (nothing_restored, plain, "/training:"),
    (tensors_not_kept, modules.SCENARIOS["forward_averages_in_buffers"], "/content/_buffers"),
    (attributes_not_kept, modules.SCENARIOS["forward_updates_metrics"], "forward_accuracy"),
    (attributes_not_kept, modules.SCENARIOS["forward_counts"], "/content/calls"),
    (attributes_not_kept, caching_without_layers, "/content/frozen"),
    (attributes_not_kept, modules.SCENARIOS["forward_adds_attributes"], "/steps"),
    (lists_not_kept, modules.SCENARIOS["forward_fills_containers"], "/content/as_list"),
    (sets_not_kept, modules.SCENARIOS["forward_fills_containers"], "/content/as_set"),
    (sets_not_kept, modules.SCENARIOS["forward_fills_containers"], "/content/as_deque"),
    (own_generators_not_kept, modules.SCENARIOS["forward_draws_from_own_generators"], "/content/torch_generator"),
    (arrays_not_kept, modules.SCENARIOS["forward_counts_in_an_array"], "/content/seen"),
    (objects_not_followed, modules.SCENARIOS["forward_feeds_an_object"], "/steps"),
    (modes_left_alone, plain, "/content/_buffers"),
    (modes_by_eval_and_train, norm_frozen_each_epoch, "/steps"),
    (modes_by_eval_and_train, modules.SCENARIOS["train_overridden"], "/content/switches"),
    (compiled_code_runs, compiled_without_hooks, "/watched/compilations"),
    (logging_not_silenced, modules.SCENARIOS["forward_logs"], "log"),
    (loader_iterated, loader_with_generator, "/watched/generator"),
    (data_set_not_kept, data_set_with_generator, "/steps"),
    (hooks_for_batches_not_kept, data.SCENARIOS["transfer_hook_uses_plain_helper_object"], "/steps"),
    (hooks_for_batches_not_kept, data.SCENARIOS["stream_unpacked_with_random_numbers"], "/steps"),
    (measured_on_the_original, criterion_that_counts, "/watched/tally"),
    (batches_not_copied, unpack_that_empties, "KeyError"),
    (weights_shaken_in_place, plain, "/content/_parameters"),
    (parameters_not_kept, modules.SCENARIOS["embedding_with_a_largest_norm"], "/steps"),
    (hooks_left_behind, plain, "/hooks/_forward_hooks"),
    (gradients_not_kept, accumulating, "/steps"),
    (measured_at_batch_start, plain, "/logged"),
]


def touched(build: Callable[[], Training], tmp_path: Any, take_away: Callable[[pytest.MonkeyPatch], None]) -> list[str]:
    """How the training differs without a guard, or the error that it ends in."""
    without = run(build, False, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        take_away(patch)
        try:
            return differences(without, run(build, True, tmp_path))
        except Exception as error:
            return [repr(error)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("take_away", "build", "where"), GUARDS, ids=[f"{guard.__name__}-{i}" for i, (guard, *_) in enumerate(GUARDS)]
)
def test_a_guard_taken_away_is_noticed(take_away, build, where, tmp_path):
    found = touched(build, tmp_path, take_away)
    assert any(re.search(where, line) for line in found), "\n".join(found[:12]) or "nothing was noticed"


@pytest.mark.parametrize(
    "build",
    [
        plain,
        accumulating,
        norm_frozen_each_epoch,
        loader_with_generator,
        data_set_with_generator,
        unpack_that_empties,
        criterion_that_counts,
    ],
)
def test_with_all_guards_these_scenarios_are_untouched(build, tmp_path):
    assert touched(build, tmp_path, nothing) == []


def test_inference_mode_is_left():
    """Lightning validates under it outside of ``fit``; a table built meanwhile would spoil the next training."""

    def measure_and_train() -> None:
        module = modules.outside_cache().module
        with torch.inference_mode():
            diagnose(module, *points(), measure=["sample_basin"])
        module.loss(points()).backward()

    measure_and_train()
    with pytest.MonkeyPatch.context() as patch:
        inference_mode_not_left(patch)
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
            measure_and_train()


# --- nothing is left -------------------------------------------------------------------------------------------------

LEFT_ALONE = {
    "plain": plain,
    **{
        name: modules.SCENARIOS[name]
        for name in (
            "frozen_batch_norm",
            "forward_counts",
            "forward_fills_containers",
            "forward_updates_metrics",
            "in_place_operations",
            "tied_weights",
            "lstm",
            "transformer_encoder_layer",
        )
    },
    "bf16": precision.SCENARIOS["bf16_true"],
}


def anatomy(module: nn.Module) -> dict[str, Any]:
    """Names of all attributes, and numbers of hooks, of every submodule."""
    state = module_state(module)
    return {name: (content["attributes"], content["hooks"]) for name, content in state.items()}


@pytest.mark.parametrize("build", LEFT_ALONE.values(), ids=LEFT_ALONE.keys())
def test_after_fit_nothing_is_left_on_the_model(build, tmp_path):
    fitted: list[L.LightningModule] = []

    def keep() -> Training:
        training = build()
        fitted.append(training.module)
        return training

    run(keep, False, tmp_path)
    run(keep, True, tmp_path)
    without, module = fitted
    assert anatomy(module) == anatomy(without)
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        assert not any(getattr(child, hooks) for child in module.modules())
    expected = digest(module.state_dict())
    assert digest(copy.deepcopy(module).state_dict()) == expected
    assert digest(pickle.loads(pickle.dumps(module)).state_dict()) == expected


def test_a_module_that_writes_over_its_input_leaves_the_probe_alone():
    inputs, labels = points()
    expected = digest(inputs)
    first = diagnose(modules.InPlace(), inputs, labels)
    assert digest(inputs) == expected
    assert first.samples == len(labels)


# --- an evaluation that fails ----------------------------------------------------------------------------------------


class Fuse:
    """Burns in a pass that the monitor makes from the fourth step on; its state is where no snapshot looks.

    Attributes:
        error: What it raises; None: it does not burn.
        running: The functions that must be running for it to burn.
        ever: Whether it burns again in every later pass, whatever is running.
        live: Whether the pass under way is such a pass.
        burnt: Whether it has burnt.
        weights: Digest of the weights when it first burnt.
    """

    error: BaseException | None = None
    running: tuple[str, ...] = ()
    ever = live = burnt = False
    weights = ""

    @classmethod
    def arm(cls, error: BaseException | None, *running: str, ever: bool = False) -> None:
        if running and sys.version_info < (3, 11):
            pytest.skip("from Python 3.11 on a frame knows the class of its function")
        cls.error, cls.running, cls.ever = error, running, ever
        cls.live, cls.burnt, cls.weights = False, False, ""

    @classmethod
    def burn(cls, module: nn.Module | None = None) -> None:
        if cls.error is None or not cls.live or (cls.burnt and not cls.ever):
            return
        frame, names = sys._getframe(1), set[str]()
        while frame is not None:
            names.add(frame.f_code.co_qualname)
            frame = frame.f_back
        if cls.burnt or names >= set(cls.running):
            if module is not None and not cls.burnt:
                cls.weights = digest(dict(module.named_parameters()))
            cls.burnt = True
            raise cls.error


class Fused(Classifier):
    """Without validation the monitor alone runs it in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        Fuse.live = not self.training and self._trainer is not None and self.trainer.global_step >= 4
        Fuse.burn(self)
        return super().forward(x)


def fused_criterion(outputs: Tensor, target: Tensor) -> Tensor:
    Fuse.burn()
    return outputs.argmax(dim=1) == target


class LastState(Callback):
    """Digests of the weights, and of weights and buffers, after the latest batch."""

    weights = digest = ""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.weights, self.digest = digest(dict(pl_module.named_parameters())), digest(pl_module.state_dict())


@pytest.fixture
def interruptible():
    """Lightning ignores Ctrl-C once it was pressed."""
    before = signal.getsignal(signal.SIGINT)
    # A process that was started in the background ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Run:
    """A training of the fused module, with or without a monitor and other callbacks."""

    def __init__(self, tmp_path: Any, monitor: dict[str, Any] | None, *callbacks: Callback) -> None:
        L.seed_everything(7, verbose=False)
        self.module, self.recorder, self.last = Fused(), Recorder(), LastState()
        settings = {"probe_size": 48, "weight_rays": 2, "weight_samples": 24, "report": False} | (monitor or {})
        self.monitor = DynamicsMonitor(**settings)
        self.trainer = L.Trainer(
            max_epochs=3,
            accelerator="cpu",
            logger=False,
            limit_val_batches=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=any(isinstance(other, Checkpoint) for other in callbacks),
            default_root_dir=str(tmp_path),
            callbacks=[*([self.monitor] if monitor is not None else []), self.recorder, self.last, *callbacks],
        )

    def fit(self) -> Run:
        self.trainer.fit(self.module, loader(), loader(shuffle=False))
        return self


ERRORS = {
    "error": lambda: RuntimeError("the fuse has burnt"),
    "memory": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "interrupt": lambda: KeyboardInterrupt(),
}
RAYS: dict[str, Any] = {"measure": ["weight_basin"], "accuracy": 0.25}
OWN: dict[str, Any] = RAYS | {"criterion": fused_criterion}
#: What is measured, and the functions that run when the fuse burns; in every one of them something else is open.
MOMENTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "first pass": ({}, ("prepare",)),
    "search for layers": ({"measure": ["modes"]}, ("survey",)),
    "map": ({"measure": ["modes"]}, ("substitute",)),
    "reading": ({"measure": ["modes"]}, ("read",)),
    "sample ray": ({"measure": ["sample_basin"]}, ("measure_sample_basin",)),
    "weight ray": (RAYS, ("_Asker.__call__",)),
    "criterion": (OWN, ("fused_criterion", "_Evaluation._reading_without_layers")),
    "criterion on a ray": (OWN, ("fused_criterion", "_Asker.__call__")),
}


#: The measure that fails, where it is one: the others still come. At the other moments nothing can be measured.
COSTS = {
    "search for layers": "modes",
    "map": "modes",
    "reading": "modes",
    "sample ray": "sample_basin",
    "weight ray": "weight_basin",
    "criterion on a ray": "weight_basin",
}


@pytest.mark.parametrize("error", ["error", "memory"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_an_evaluation_that_fails_is_said_once_and_training_goes_on(error, moment, tmp_path):
    settings, running = MOMENTS[moment]
    Fuse.arm(None)
    without = Run(tmp_path, None).fit()
    Fuse.arm(ERRORS[error](), *running)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again = Run(tmp_path, settings).fit()
    assert Fuse.burnt
    said = [str(warning.message) for warning in caught if "netdyn" in str(warning.message)]
    assert len(said) == 1
    kind, text = type(ERRORS[error]()).__name__, str(ERRORS[error]())
    measure, lost_all = COSTS.get(moment), moment == "first pass" or (moment, error) == ("criterion", "error")
    advice = "Pass a smaller `batch_size` or `probe_size`. " if error == "memory" else ""
    if lost_all:
        lost, way_out = "netdyn: measurement failed and was skipped; training continues", "Pass"
    else:
        lost = f"netdyn could not measure {measure!r}, and goes on without it"
        way_out = f"Leave {measure!r} out of `measure`, or pass"
    if error == "memory" and not lost_all:
        # The second attempt, with half of the 48 samples, succeeds.
        assert said[0] == "netdyn: out of memory; from here on 24 samples per forward pass. Set `batch_size=24`."
    else:
        assert said[0].startswith(f"{lost}: ")
        assert f"{kind}: {text}." in said[0]
        assert said[0].endswith(f". {advice}{way_out} strict=True to have this raised.")
    assert differences(without.recorder.steps, again.recorder.steps) == []
    assert differences(module_state(without.module), module_state(again.module)) == []
    assert again.monitor.monitor.skipped == lost_all
    assert again.monitor.monitor.evaluations == 4
    assert float(again.trainer.callback_metrics["netdyn/skipped"]) == lost_all


# Lightning looks for a checkpoint to go on from whenever it finds an OnExceptionCheckpoint, and says so twice.
@pytest.mark.slow
@pytest.mark.filterwarnings(r"ignore:`\.fit\(ckpt_path=None\)` was called without a model:UserWarning")
@pytest.mark.filterwarnings(r"ignore:\.fit\(ckpt_path=\"last\"\) is set, but there is no last checkpoint:UserWarning")
@pytest.mark.parametrize("checkpoint", ["model checkpoint", "exception checkpoint"])
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_failure_that_ends_training_leaves_true_weights(error, moment, checkpoint, tmp_path, interruptible):
    settings, running = MOMENTS[moment]
    if checkpoint == "model checkpoint":
        saving: Callback = ModelCheckpoint(dirpath=tmp_path, save_on_exception=True, every_n_train_steps=1000)
    else:
        saving = OnExceptionCheckpoint(tmp_path)
    # Where memory runs out once, the second attempt succeeds.
    Fuse.arm(ERRORS[error](), *running, ever=error == "memory")
    failing = Run(tmp_path, settings | {"strict": True}, saving)
    with pytest.raises(SystemExit if error == "interrupt" else RuntimeError):
        failing.fit()
    assert Fuse.burnt
    assert failing.trainer.global_step == 4
    (saved,) = tmp_path.glob("*.ckpt")
    assert digest(torch.load(saved, weights_only=False)["state_dict"]) == failing.last.digest
    assert digest(failing.module.state_dict()) == failing.last.digest
    assert failing.monitor.monitor.probe is None
    if moment == "weight ray":
        assert Fuse.weights != failing.last.weights, "the weights were not moved when the fuse burnt"
    # The same module trains on, as one that was never measured.
    fresh, again = Run(tmp_path, None), Run(tmp_path, None)
    again.module = failing.module
    assert anatomy(again.fit().module) == anatomy(fresh.fit().module)


class Interrupting(Callback):
    """Presses Ctrl-C at the end of the first epoch."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("strict", [False, True])
def test_ctrl_c_during_an_evaluation_is_ctrl_c(strict, tmp_path, interruptible):
    Fuse.arm(None)
    without = Run(tmp_path, None, Interrupting())
    with pytest.raises(SystemExit) as expected:
        without.fit()
    handler = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    Fuse.arm(KeyboardInterrupt(), "survey")
    again = Run(tmp_path, {"strict": strict})
    with pytest.raises(SystemExit) as met:
        again.fit()
    assert met.value.code == expected.value.code
    assert again.trainer.state == without.trainer.state
    assert again.trainer.interrupted
    assert signal.getsignal(signal.SIGINT) is handler
    assert (again.trainer.global_step, again.trainer.current_epoch) == (4, 0)
    assert differences(module_state(without.module), module_state(again.module)) == []


@pytest.mark.parametrize("strict", [False, True])
def test_figures_at_the_end_that_fail_leave_the_last_report_and_true_weights(strict, tmp_path, monkeypatch):
    real = evaluate.measure_sample_basin

    def failing(evaluator: Any, *given: Any, **options: Any) -> Any:
        # The radii of the classes are found where figures are drawn, here at both ends.
        calls.append(options["per_class"])
        evaluator.all_right()
        if calls.count(True) == 2:
            raise RuntimeError("the fuse has burnt")
        return real(evaluator, *given, **options)

    calls: list[bool] = []
    Fuse.arm(None)
    without = Run(tmp_path, None).fit()
    again = Run(tmp_path, {"measure": ["modes", "sample_basin"], "strict": strict})
    with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        patch.setattr(evaluate, "measure_sample_basin", failing)
        with pytest.raises(RuntimeError, match="the fuse has burnt") if strict else nullcontext():
            again.fit()
    assert calls == [True, False, False, False, True]
    said = [str(warning.message) for warning in caught if "netdyn" in str(warning.message)]
    assert ["could not measure 'sample_basin'" in text for text in said] == [True] * (not strict)
    assert differences(module_state(without.module), module_state(again.module)) == []
    assert again.monitor.monitor.probe is None
    assert again.monitor.report.sample_basin is not None
    assert (again.monitor.monitor.evaluations, again.monitor.monitor.skipped) == (4, 0)


# --- networks that are lost ------------------------------------------------------------------------------------------


class Lost(Classifier):
    """Its weights turn NaN after a few batches, or are so from the start."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == self.after:
            self.net[4].weight.data.fill_(torch.nan)


@pytest.mark.parametrize("after", [0, 2])
def test_a_network_of_nan_trains_on(after, tmp_path):
    def build() -> Training:
        return Training(Lost(after), loader(), loader(shuffle=False))

    without = run(build, False, tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again = run(build, True, tmp_path)
    assert differences(without, again) == []
    said = [str(warning.message) for warning in caught]
    assert sum("outputs NaN or inf" in text for text in said) == 1


class FromNothing(Classifier):
    """NaN from the start."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, CLASSES)))
        self.net[0].weight.data.fill_(torch.nan)


def test_a_network_born_of_nan_trains_on(tmp_path):
    def build() -> Training:
        return Training(FromNothing(), loader(), loader(shuffle=False))

    without = run(build, False, tmp_path)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        again = run(build, True, tmp_path)
    assert differences(without, again) == []


# --- memory ----------------------------------------------------------------------------------------------------------


class Weighing(Callback):
    """At some steps: living tensors and their bytes, blocks that Python holds, and the process's pages."""

    def __init__(self) -> None:
        self.tensors: list[tuple[int, int]] = []
        self.blocks: list[int] = []
        self.resident: list[int] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step in (20, 110, 200):
            gc.collect()
            living = [thing for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter)]
            self.tensors.append((len(living), sum(tensor.untyped_storage().nbytes() for tensor in living)))
            self.blocks.append(sys.getallocatedblocks())
            pages = Path("/proc/self/statm")
            self.resident.append(int(pages.read_text().split()[1]) * 4096 if pages.exists() else 0)


@pytest.mark.slow
def test_two_hundred_evaluations_do_not_grow_memory(monkeypatch):
    # What heat maps show grows by a few numbers an evaluation, up to this length.
    monkeypatch.setattr(history, "LONGEST", 2)
    weighing = Weighing()
    monitor = DynamicsMonitor(every_n_train_steps=1, strict=True, probe_size=32, weight_rays=1)
    trainer = L.Trainer(
        max_steps=200,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[monitor, weighing],
    )
    trainer.fit(modules.Counting(), loader(), loader(shuffle=False))
    assert monitor.monitor.evaluations >= 200
    assert monitor.monitor.skipped == 0
    assert len(weighing.tensors) == 3
    # Each report replaces the one before it: as many tensors. Curves have an entry for each noise level that was asked,
    # and their lengths differ by a few.
    counts, sizes = zip(*weighing.tensors, strict=True)
    assert len(set(counts)) == 1
    assert max(sizes) - min(sizes) < 2000
    # In the last 90 evaluations not one block more an evaluation, and under 2 MB more memory of the process. Values
    # that come and go (a radius that is not finite is not sent) are a few blocks each.
    assert weighing.blocks[2] - weighing.blocks[1] < 90 + 4 * len(trainer.callback_metrics)
    assert weighing.resident[2] - weighing.resident[1] < 2e6
