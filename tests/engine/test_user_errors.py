"""What is said, word for word, when the user's model, data or arguments do not fit."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, Dataset

from netdyn import Monitor, diagnose
from netdyn._utils.user_code import add_note, reason
from netdyn.functional import batchnorm_gap, linear_substitution_map, local_fields, sample_basin, weight_basin
from networks import fill, samples


def mlp(inputs=6, outputs=3):
    return fill(nn.Sequential(nn.Linear(inputs, 9), nn.ReLU(), nn.Linear(9, outputs)))


class Around(nn.Module):
    """A small classifier, reached by a ``forward`` of its own."""

    def __init__(self, inputs=6):
        super().__init__()
        self.net = mlp(inputs)


class Masked(Around):
    def forward(self, x, mask, *, scale=1.0):
        return self.net(x * mask * scale)


class FixedBatch(Around):
    def forward(self, x):
        return self.net(x.view(20, 6))


class OfBytes(Around):
    def forward(self, x):
        return self.net(x.float() / 255)


class OfComplex(Around):
    def forward(self, x):
        return self.net(torch.view_as_real(x).flatten(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.GRU(6, 9), nn.Linear(9, 3)

    def forward(self, x):
        return self.out(self.cell(x)[0][-1])


def told_by_torch(call):
    """What torch itself says: its words change from release to release."""
    with pytest.raises(RuntimeError) as info:
        call()
    return str(info.value)


X, Y = samples(20), torch.arange(20) % 3
CALLED = "The model, called with 2 of the 20 samples of `inputs` ({}), raised "
INSTEAD = (
    "Pass inputs that fit (several as a sequence or a mapping), or `forward=`, a function of the model and the inputs "
    "that returns the logits."
)
NO_NOISE = "holds no floating tensor that noise could disturb, and no embedding has run. "
OTHER_MODULES = "or name modules whose output it is to disturb, for instance noise_at="

#: Model, inputs and target, or a function that makes the call; and the whole text.
CASES = {
    "a forward with a second argument": (
        lambda: diagnose(Masked(), X, Y),
        TypeError,
        CALLED.format("float32 [20, 6]")
        + "TypeError: Masked.forward() missing 1 required positional argument: 'mask'. "
        "`Masked.forward` takes (x, mask, scale=…). " + INSTEAD,
    ),
    "names that forward does not take": (
        lambda: diagnose(mlp(), {"a": X, "b": X}, Y),
        TypeError,
        CALLED.format("{'a': float32 [20, 6], 'b': float32 [20, 6]}")
        + "TypeError: linear(): argument 'input' (position 1) must be Tensor, not dict. `Sequential.forward` takes "
        "(input). " + INSTEAD,
    ),
    "inputs of the wrong width": (
        lambda: diagnose(mlp(5), X, Y),
        RuntimeError,
        CALLED.format("float32 [20, 6]")
        + f"RuntimeError: {told_by_torch(lambda: mlp(5)(X[:2]))}. `Sequential.forward` takes (input). {INSTEAD}",
    ),
    "a batch size fixed in the model": (
        lambda: diagnose(FixedBatch(), X, Y),
        RuntimeError,
        CALLED.format("float32 [20, 6]")
        + "RuntimeError: shape '[20, 6]' is invalid for input of size 12. It runs on all 20 at once: this model "
        "cannot be run on a part of its samples. Where its `forward` or its state fixes their number, take it from "
        "the input (`len(x)`). Where each sample needs all others (nodes of one graph), pass indices as `inputs`, and "
        "a `forward=` that runs all and picks them.",
    ),
    "bytes that the model does not convert": (
        lambda: diagnose(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)), IMAGES, Y),
        RuntimeError,
        CALLED.format("uint8 [20, 1, 3, 3]")
        + "RuntimeError: Input type (unsigned char) and bias type (float) should be the "
        "same. Convert uint8 inputs as training does, for instance with `inputs.float() / 255`.",
    ),
    "inputs and target swapped": (
        lambda: diagnose(mlp(), Y, X),
        RuntimeError,
        CALLED.format("int64 [20]")
        + "RuntimeError: mat1 and mat2 must have the same dtype, but got Long and Float. Are "
        "`inputs` and `target` swapped? The order is (model, inputs, target).",
    ),
    "model and inputs swapped": (
        lambda: diagnose(X, mlp(), Y),
        TypeError,
        "`model` must be a torch.nn.Module, got Tensor. It is the first argument.",
    ),
    "a forward of the user's that raises": (
        lambda: diagnose(mlp(), X, Y, forward=lambda model, x: model(x)["logits"]),
        RuntimeError,
        "`forward`, called with 2 of the 20 samples of `inputs` (float32 [20, 6]), raised IndexError: too many "
        "indices for tensor of dimension 2. It is called as `forward(model, inputs)`, and must return the logits "
        "[samples, classes].",
    ),
    "a criterion that raises": (
        lambda: diagnose(mlp(), X, Y, criterion=lambda outputs, target: outputs > margin),  # noqa: F821
        RuntimeError,
        "`criterion`, called with outputs (float32 [20, 3]) and target (int64 [20]), raised NameError: name "
        "'margin' is not defined. It must return a boolean tensor [samples].",
    ),
    "a packed sequence": (
        lambda: diagnose(Recurrent(), pack_sequence([samples(5, shape=(6,))] * 20), Y),
        TypeError,
        "`inputs` holds a PackedSequence, in which steps come before samples. Pass padded sequences [samples, steps, "
        "…] and their lengths, and pack them in `forward=`.",
    ),
    "a list of waveforms": (
        lambda: diagnose(mlp(), [torch.zeros(100 + i) for i in range(20)], Y),
        ValueError,
        "`inputs` must be one tensor with samples first, got [float32 [100], float32 [101], … 20 in all]. "
        "Make it with `torch.nn.utils.rnn.pad_sequence(…, batch_first=True)`.",
    ),
    "a list of samples": (
        lambda: diagnose(mlp(), list(X), Y),
        ValueError,
        "`inputs` must be one tensor with samples first, got [float32 [6], float32 [6], … 20 in all]. Make "
        "it with `torch.stack`.",
    ),
    "steps first": (
        lambda: diagnose(Recurrent(), samples(7, shape=(20, 6)), Y),
        ValueError,
        "`inputs` must have samples first, and `target` has 20 entries, got float32 [7, 20, 6]. Pass "
        "`inputs.transpose(0, 1)`, and turn it back in `forward=`.",
    ),
    "another number of labels": (
        lambda: diagnose(mlp(), X, Y[:7]),
        ValueError,
        "`target` must have one entry for each of the 20 samples, got shape [7] for float32 [20, 6].",
    ),
    "sparse inputs": (
        lambda: diagnose(mlp(), X.to_sparse(), Y),
        TypeError,
        "`inputs` holds a sparse tensor (torch.sparse_coo), of which no part can be taken. Pass `to_dense()` of it; "
        "if the model needs it sparse, make it so in `forward=`.",
    ),
    "texts": (
        lambda: diagnose(mlp(), ["a text", "another"] * 10, Y),
        TypeError,
        "`inputs` must hold tensors with samples first, got [str, str, … 20 in all]. Pass token ids in place of texts.",
    ),
    "an array": (
        lambda: diagnose(mlp(), X.numpy(), Y),
        TypeError,
        "`inputs` must hold tensors with samples first, got ndarray. Convert with `torch.as_tensor`.",
    ),
    "bytes that the model converts": (
        lambda: diagnose(OfBytes(), torch.zeros(20, 6, dtype=torch.uint8), Y, measure=["sample_basin"]),
        TypeError,
        f"`inputs` (uint8 [20, 6]) {NO_NOISE}Pass floating numbers, as the model computes them from these "
        f"(`inputs.float()`); {OTHER_MODULES}['net.0', 'net.1', 'net.2'].",
    ),
    "complex inputs": (
        lambda: diagnose(OfComplex(), torch.complex(X[:, :3], X[:, 3:]), Y, measure=["sample_basin"]),
        TypeError,
        f"`inputs` (complex64 [20, 3]) {NO_NOISE}Pass `torch.view_as_real(inputs)`, and turn it back with "
        f"`torch.view_as_complex` in `forward=`; {OTHER_MODULES}['net.0', 'net.1', 'net.2'].",
    ),
    "an activation as a layer": (
        lambda: diagnose(nn.Sequential(mlp()), X, Y, layers=["0.1"]),
        ValueError,
        "`layers` names '0.1', which is an activation: a layer has the name of the module whose output the activation "
        "reads. The layers here are ['0.0'].",
    ),
    "a single linear module": (
        lambda: diagnose(nn.Linear(6, 3), X, Y),
        ValueError,
        "No activation function was found, so there is no local field to read. The model is a single module: to read "
        "its output, wrap it in `nn.Sequential` and pass `layers=['0']`.",
    ),
    "weights of another name": (
        lambda: diagnose(mlp(), X, Y, weight_layers=["1.weight"]),
        ValueError,
        "`weight_layers` names '1.weight', which matches no weight. The nearest are '2.weight', '0.weight'.",
    ),
    "labels of the held-out probe": (
        lambda: diagnose(mlp(), X, Y, val_inputs=X, val_target=Y + 1),
        ValueError,
        "In the held-out probe: `target` must lie in [0, num_classes) = [0, 3), got the label 3. Subtract 1 from "
        "labels that begin at 1.",
    ),
}
IMAGES = torch.zeros(20, 1, 3, 3, dtype=torch.uint8)


class Samples(Dataset):
    """Samples of a form of their own."""

    def __init__(self, sample):
        self.sample = sample

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return self.sample(index)


def measured(sample, **options):
    collate = options.pop("collate_fn", None)
    loader = DataLoader(Samples(sample), 20, collate_fn=collate)
    return Monitor(loader, strict=True, measure=["modes"], **options).measure(mlp(), 0)


ROWS = (
    "`target` must hold whole class labels (an integer dtype), got rows that sum to 1, of shape [20, 3]. Convert "
    "one-hot "
)
CASES |= {
    "one-hot labels": (
        lambda: diagnose(mlp(), X, nn.functional.one_hot(Y)),
        TypeError,
        f"{ROWS}or probability targets with `target.argmax(1)`; pass task='multilabel' or task='numbers' if they are "
        "something else.",
    ),
    "one-hot labels, of a function without task": (
        lambda: batchnorm_gap(mlp(), X, nn.functional.one_hot(Y)),
        TypeError,
        f"{ROWS}or probability targets with `target.argmax(1)`.",
    ),
    "one-hot labels, of a function with task": (
        lambda: weight_basin(mlp(), X, nn.functional.one_hot(Y)),
        TypeError,
        f"{ROWS}or probability targets with `target.argmax(1)`; pass task='multilabel' or task='numbers' if they are "
        "something else.",
    ),
    "a mean and a variance": (
        lambda: diagnose(mlp(outputs=2), X, X[:, 0]),
        TypeError,
        "`target` must hold whole class labels, or one number for each output, got numbers that are not whole, of "
        "dtype torch.float32 and shape [20], for 2 outputs per sample. Let `forward=` return one output for each "
        "number, such as the mean without the variance.",
    ),
    "counts": (
        lambda: diagnose(mlp(outputs=1), X, torch.arange(20) * 9),
        ValueError,
        "`target` must lie in [0, num_classes) = [0, 2), got the label 171. Pass task='numbers' if these are numbers "
        "to be predicted.",
    ),
    "counts, of a function without task": (
        lambda: batchnorm_gap(mlp(outputs=1), X, torch.arange(20) * 9),
        ValueError,
        "`target` must lie in [0, num_classes) = [0, 2), got the label 171. Pass `target.float()` if these are "
        "numbers to be predicted.",
    ),
    "unlabelled samples": (
        lambda: diagnose(mlp(), X, Y - 1),
        ValueError,
        "`target` must lie in [0, num_classes) = [0, 3), got the label -1. Pass `ignore_index=-1` if that marks what "
        "has no label.",
    ),
    "names of classes": (
        lambda: diagnose(mlp(), X, ["cat", "dog"] * 10),
        TypeError,
        "`target` must be a tensor with one entry per sample, got list. Convert it with `torch.as_tensor`, names of "
        "classes to numbers first.",
    ),
    "an output that is no tensor": (
        lambda: diagnose(mlp(), X, Y, forward=lambda model, x: {"scores": model(x)}),
        TypeError,
        "The model's output must be a tensor [samples, classes], got dict. Pass `forward=`, a function of the model "
        "and the inputs that picks the logits from it.",
    ),
}


#: What is accepted as it is: targets, and the accuracy of a network that puts out what they say.
ACCEPTED = {
    "bool labels": (2, lambda outputs: outputs.argmax(1).bool()),
    "labels in a column": (3, lambda outputs: outputs.argmax(1)[:, None]),
    "labels in a column, with one logit": (1, lambda outputs: (outputs > 0).long()),
    "several labels": (5, lambda outputs: (outputs > 0).float()),
}


@pytest.mark.filterwarnings("ignore:The probe holds:netdyn.DynamicsWarning")
@pytest.mark.parametrize(("outputs", "target"), ACCEPTED.values(), ids=ACCEPTED)
def test_targets_of_these_forms_are_accepted(outputs, target):
    network = mlp(outputs=outputs)
    with torch.no_grad():
        wanted = target(network(X))
    assert diagnose(network, X, wanted, measure=[]).accuracy == 1
    # One sample has another label: 1 and 0 change places, and 2 becomes 1.
    wanted[0] = ~wanted[0] if wanted.dtype == torch.bool else (1 - wanted[0]).abs()
    assert diagnose(network, X, wanted, measure=[]).accuracy == pytest.approx(19 / 20)


NO_PAIR = "A batch must be a pair (input, target), or a mapping with keys such as 'x' and 'y', got "
UNPACK = ". Pass `unpack=`, a function of the batch that returns the model's input and the target, a tensor."
PROBE = ". Pass `probe=`, the samples to measure on, as a pair of tensors (inputs, target)."
CASES |= {
    "a batch with weights": (
        lambda: measured(lambda i: (X[i], (Y[i], X[i, 0]))),
        TypeError,
        f"{NO_PAIR}[float32 [20, 6], [int64 [20], float32 [20]]]{UNPACK}",
    ),
    "a batch of boxes": (
        lambda: measured(
            lambda i: (X[i], {"boxes": torch.zeros(i, 4)}), collate_fn=lambda batch: list(zip(*batch, strict=True))
        ),
        TypeError,
        f"{NO_PAIR}[(float32 [6], float32 [6], … 20 in all), ({{'boxes': float32 [0, 4]}}, {{'boxes': float32 [1, "
        f"4]}}, … 20 in all)]{UNPACK}",
    ),
    "an unpack that raises": (
        lambda: measured(lambda i: X[i, 0], unpack=lambda batch: sum(*batch.shape)),
        TypeError,
        "`unpack`, called with the batch float32 [20], raised TypeError: 'int' object is not iterable. It must return "
        "a pair (inputs, target).",
    ),
    "an unpack that returns something else": (
        lambda: measured(lambda i: X[i], unpack=lambda batch: batch),
        TypeError,
        "`unpack` must return a pair (inputs, target) with a tensor as target, got Tensor.",
    ),
    "a data set that raises": (
        lambda: measured(lambda i: {}["image"]),
        RuntimeError,
        f"The data set raised KeyError: 'image'{PROBE}",
    ),
    "a data set that raises, of a report": (
        lambda: diagnose(mlp(), Samples(lambda i: {}["image"])),
        RuntimeError,
        "The data set raised KeyError: 'image'. Pass tensors, `inputs` and `target`.",
    ),
    "a share over one": (
        lambda: measured(lambda i: (X[i], Y[i]), max_overhead=5),
        ValueError,
        "`max_overhead` must be a share of the training time, above 0 and at most 1 (0.05 is 5 %), got 5.",
    ),
    "a measure instead of a list": (
        lambda: measured(lambda i: (X[i], Y[i]), layers="0"),
        TypeError,
        "`layers` must be a list of names or globs, got '0'. Write layers=['0'].",
    ),
}


@pytest.mark.parametrize(("call", "kind", "text"), CASES.values(), ids=CASES)
def test_what_does_not_fit_is_answered_with_what_fits(call, kind, text):
    with pytest.raises(kind, match=f"^{re.escape(text)}$"):
        call()


# What the called function takes ---------------------------------------------------------------------------------------


WRAPPED = "Pass inputs that fit (several as a sequence or a mapping), or wrap the model in a module that takes them."
FUNCTIONS = {
    "local_fields": lambda *inputs: local_fields(*inputs),
    "linear_substitution_map": lambda *inputs: linear_substitution_map(*inputs),
    "sample_basin": lambda *inputs: sample_basin(*inputs, Y),
    "weight_basin": lambda *inputs: weight_basin(*inputs, Y),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions_without_forward_do_not_recommend_it(function):
    with pytest.raises(TypeError, match=f"{re.escape(WRAPPED)}$") as error:
        function(Masked(), X)
    assert "forward=" not in str(error.value)
    with pytest.raises(TypeError, match=r"make it so in the model's `forward`\.$"):
        function(mlp(), X.to_sparse())


def test_functions_name_the_argument_that_they_take_for_weights():
    with pytest.raises(ValueError, match=r"^`layers` names '1\.weight', which matches no weight"):
        weight_basin(mlp(), X, Y, layers=["1.weight"])


# The original error ---------------------------------------------------------------------------------------------------


class Broken(Exception):
    """An error that the user knows."""


class Raising(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        raise self.error


def test_an_error_of_pythons_is_the_cause():
    missing = KeyError("image")
    with pytest.raises(RuntimeError, match=r"raised KeyError: 'image'\. `Raising") as error:
        diagnose(Raising(missing), X, Y)
    assert repr(error.value.__cause__) == repr(missing)


def test_an_error_of_the_users_own_type_keeps_it_and_gets_a_note():
    class Breaks(nn.Module):
        def forward(self, x):
            raise Broken("a valve")

    with pytest.raises(Broken, match=r"^a valve") as error:
        diagnose(Breaks(), X, Y)
    (note,) = error.value.__notes__
    assert note == f"{CALLED.format('float32 [20, 6]')}Broken: a valve. `Breaks.forward` takes (x). {INSTEAD}"
    assert reason(error.value) == note


@pytest.mark.parametrize("kind", [ValueError, Broken])
def test_a_note_of_the_users_own_does_not_take_the_explanations_place(kind):
    class Breaks(nn.Module):
        def forward(self, x):
            error = kind("a valve")
            add_note(error, "see the manual")
            raise error

    with pytest.raises(kind) as error:
        diagnose(Breaks(), X, Y)
    add_note(error.value, "it was Tuesday")
    assert f"{kind.__name__}: a valve. `Breaks.forward` takes (x). {INSTEAD}" in reason(error.value)


def test_a_long_text_is_cut_and_an_empty_one_is_none():
    with pytest.raises(NotImplementedError) as error:
        diagnose(Raising(NotImplementedError("no kernel " * 200)), X, Y)
    assert re.search(r"raised NotImplementedError: (no kernel )+no …\. `Raising", str(error.value))
    assert len(str(error.value)) < 800
    with pytest.raises(ValueError, match=r"raised ValueError\. `Raising"):
        diagnose(Raising(ValueError()), X, Y)


def test_an_error_that_netdyn_raised_passes_through():
    refusal = None

    class Inner(nn.Module):
        def forward(self, x):
            nonlocal refusal
            try:
                return local_fields(mlp(), x, layers=["nothing"])
            except ValueError as error:
                refusal = error
                raise

    with pytest.raises(ValueError, match=r"^`layers` names 'nothing', which matches nothing\.") as error:
        diagnose(Inner(), X, Y)
    assert error.value is refusal


def test_a_lack_of_memory_keeps_its_type():
    full = torch.OutOfMemoryError("out of memory")
    with pytest.raises(torch.OutOfMemoryError, match=r"^out of memory$"):
        diagnose(Raising(full), X, Y)


@pytest.mark.parametrize("text", ["no valve", "no valve.", "no valve\n", "is it open?", ""])
def test_a_monitor_ends_the_reason_with_a_full_stop(text):
    monitor = Monitor((X, Y), measure=["modes"])
    with pytest.warns(UserWarning, match="^netdyn: measurement failed and was skipped") as caught:
        assert monitor.measure(Raising(ValueError(text)), 0) is None
    (said,) = [str(warning.message) for warning in caught]
    assert said.endswith("returns the logits. Pass strict=True to have this raised.")
    kind = f"ValueError: {text.strip()}".rstrip(" :.")
    assert f"raised {kind}{'' if kind.endswith('?') else '.'} `Raising.forward` takes (x). " in said
