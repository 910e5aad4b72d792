"""Real trainings of Hugging Face's Trainer, on small random models and without a network, and what is left of them."""

import os
import random
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch.utils.data import Dataset

import huggingface
from netdyn import diagnose
from netdyn.huggingface import DynamicsCallback
from netdyn.probes.unpacking import input_and_target

QUICK = {"measure": ["modes", "sample_basin", "batchnorm"], "figures": "never"}
SAMPLES, BATCH = 48, 8
OURS = ("probe/", "modes/", "phase/", "linear/", "basin/", "coverage/", "batchnorm/", "netdyn/")
#: Of our numbers, those that a clock decides.
CLOCK = ("netdyn/seconds", "netdyn/overhead")


class Samples(Dataset):
    """Samples by name, which notes in which order they are read."""

    def __init__(self, **columns):
        self.columns, self.read = columns, []

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index):
        self.read.append(index)
        return {name: column[index] for name, column in self.columns.items()}


def texts():
    inputs = huggingface.masked(SAMPLES)
    return Samples(**inputs, labels=(inputs["input_ids"][:, 0] > huggingface.WORDS // 2).long())


def words():
    ids = huggingface.tokens(SAMPLES)
    return Samples(input_ids=ids, labels=ids.clone())


def images():
    values = torch.rand(SAMPLES, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    return Samples(pixel_values=values, labels=(values.mean((1, 2, 3)) > 0.5).long())


def hide_words(samples):
    """A collator that hides words at random, for which −100 marks the others."""
    batch = transformers.default_data_collator(samples)
    hidden = torch.rand(batch["input_ids"].shape) < 0.3
    hidden[:, 0] = True
    batch["labels"] = batch["input_ids"].masked_fill(~hidden, -100)
    batch["input_ids"] = batch["input_ids"].masked_fill(hidden, 2)
    return batch


def gpt2():
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16, "bos_token_id": 1, "eos_token_id": 1}
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=huggingface.WORDS, **sizes))


TASKS = {
    "classifier": (lambda: huggingface.bert(num_labels=2), texts, None),
    "masked": (lambda: huggingface.bert("BertForMaskedLM"), words, hide_words),
    "causal": (gpt2, words, None),
    "images": (lambda: huggingface.vit(num_labels=2), images, None),
}


def trainer_of(folder, task="classifier", evaluated=False, samples=SAMPLES, **options):
    """A Trainer on a network with dropout; 6 steps an epoch."""
    make, data, collator = TASKS[task]
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "logging_steps": 4,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
    }
    trainer = transformers.Trainer(
        model=make().train(),
        args=transformers.TrainingArguments(**defaults | options),
        train_dataset=Samples(**{name: column[:samples] for name, column in data().columns.items()}),
        eval_dataset=data() if evaluated else None,
        data_collator=collator,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def watched(trainer, **options):
    callback = DynamicsCallback(trainer, **QUICK | options)
    trainer.add_callback(callback)
    return callback


def entries(trainer):
    """Our entries of the log, and the Trainer's own without what the clock decides."""
    ours, others = [], []
    for entry in trainer.state.log_history:
        if any(name.startswith(OURS) for name in entry):
            ours.append(entry)
        else:
            others.append({name: value for name, value in entry.items() if not name.endswith(("runtime", "_second"))})
    return ours, others


def steps(trainer):
    return [entry["step"] for entry in entries(trainer)[0]]


def everything(trainer):
    """All that a training leaves behind."""
    model = trainer.model
    return {
        "weights": model.state_dict(),
        "modes": [module.training for module in model.modules()],
        "gradients": [weight.grad for weight in model.parameters()],
        "optimizer": trainer.optimizer.state_dict(),
        "schedule": trainer.lr_scheduler.state_dict(),
        "generators": [torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()],  # noqa: NPY002
        "order": trainer.train_dataset.read,
        "evaluated": trainer.eval_dataset.read if trainer.eval_dataset is not None else None,
        "log": entries(trainer)[1],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "attributes": [sorted(module.__dict__) for module in model.modules()],
    }


def same(one, other):
    """Whether two values are equal, bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def differences(one, other):
    return [name for name in one if not same(one[name], other[name])]


class Fails:
    """Unpacks batches, but not on one process."""

    def __init__(self, rank):
        self.rank = rank

    def __call__(self, batch):
        if torch.distributed.get_rank() == self.rank:
            raise RuntimeError("out of ink")
        return input_and_target(batch)


def left(folder, watch, apart=False, fails_on=None, **options):
    """What a training leaves behind on this process; where asked for, each has samples of its own."""
    trainer = trainer_of(folder, **options)
    if apart:
        shift = 7 * trainer.args.process_index
        trainer.train_dataset.columns = {name: c.roll(shift, 0) for name, c in trainer.train_dataset.columns.items()}
    unpack = None if fails_on is None else Fails(fails_on)
    callback = watched(trainer, unpack=unpack) if watch else None
    trainer.train()
    found = {"training": everything(trainer), "processes": trainer.args.world_size}
    if callback is not None:
        monitor = callback.monitor
        probe = None if monitor.probe is None else (monitor.probe.inputs, monitor.probe.target)
        found |= {"ours": entries(trainer)[0], "probe": probe, "told": sorted(monitor._said.values())}
    return found


def on_this_process(*given, **options):
    """The job of one of a pair of processes, which have found each other; otherwise a launcher says all this."""
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    said = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "localhost", "MASTER_PORT": 1}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in said.items():
            patch.setenv(name, str(value))
        return left(*given, **options)


def assert_as_one(without, watched, task="classifier"):
    """Training is untouched on every process, and each has the numbers that one alone has of the last network."""
    for plain, with_callback in zip(without, watched, strict=True):
        assert plain["processes"] == with_callback["processes"] == len(watched)
        assert differences(plain["training"], with_callback["training"]) == []
    first = watched[0]["ours"]
    for found in watched[1:]:
        assert same(found["probe"], watched[0]["probe"])
        assert found["ours"] == first
    network = TASKS[task][0]()
    network.load_state_dict(watched[0]["training"]["weights"])
    expected = diagnose(network, *watched[0]["probe"], measure=QUICK["measure"]).scalars()
    logged = {name: first[-1][name] for name in expected if name in first[-1]}
    assert logged.keys() >= {"probe/accuracy", "modes/opt_mean", "modes/dead_max", "basin/sample/radius"}
    # Another batch size may round a last digit of a logit, and of what is computed from it.
    assert logged == pytest.approx({name: expected[name] for name in logged}, rel=1e-5, abs=1e-6)


if __name__ == "__main__":  # started by a launcher
    folder = Path(sys.argv[1])
    for name in ("without", "with"):
        torch.save(left(folder / name, name == "with"), folder / f"{name}_{os.environ['RANK']}.pt")
