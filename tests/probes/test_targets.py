"""What targets are: read from their shapes and values, or as the options say."""

import re

import pytest
import torch

from netdyn import Config
from netdyn._utils.options import offering
from netdyn.probes.targets import TargetOptions, read_targets

N = 12
DRAW = torch.Generator().manual_seed(0)
LABELS = torch.arange(N) % 3
BITS = torch.arange(N) % 2
MANY = (torch.arange(N * 5).reshape(N, 5) * 7 % 10 < 4).float()
PIXELS = torch.arange(N * 16).reshape(N, 4, 4) % 3
MASKS = torch.arange(N * 16).reshape(N, 1, 4, 4) * 5 % 7 % 2
IMAGES = torch.rand(N, 1, 4, 4, generator=DRAW)
TOKENS = torch.arange(N * 6).reshape(N, 6) % 5
PADDED = torch.where(torch.arange(6) < 4, TOKENS, -100)


def outputs(*shape):
    return torch.zeros(2, *shape)


def read(out, target, inputs=None, **options):
    with offering(Config):
        return read_targets(out, target, torch.zeros(N, 2) if inputs is None else inputs, TargetOptions(**options))


#: Outputs, target, kind, values, classes.
READ = {
    "labels": (outputs(3), LABELS, "classes", LABELS, 3),
    "labels in a column": (outputs(3), LABELS[:, None], "classes", LABELS, 3),
    "labels of 8 bits": (outputs(200), (LABELS + 156).to(torch.uint8), "classes", LABELS + 156, 200),
    "bool labels": (outputs(2), BITS.bool(), "classes", BITS, 2),
    "bool labels, one logit": (outputs(1), BITS.bool(), "classes", BITS, 2),
    "labels in a column, one logit": (outputs(1), BITS[:, None], "classes", BITS, 2),
    "zeros and ones, one output": (outputs(), BITS.float(), "classes", BITS, 2),
    "floating labels": (outputs(3), LABELS.double(), "classes", LABELS, 3),
    "floating labels in a column": (outputs(3), LABELS[:, None].float(), "classes", LABELS, 3),
    "pixels": (outputs(3, 4, 4), PIXELS, "positions", PIXELS.flatten(1), 3),
    "pixels in a channel": (outputs(3, 4, 4), PIXELS[:, None], "positions", PIXELS.flatten(1), 3),
    "floating pixels": (outputs(3, 4, 4), PIXELS.float(), "positions", PIXELS.flatten(1), 3),
    "masks": (outputs(1, 4, 4), MASKS.float(), "positions", MASKS.flatten(1), 2),
    "bool masks": (outputs(1, 4, 4), MASKS[:, 0].bool(), "positions", MASKS.flatten(1), 2),
    "masks without a channel": (outputs(4, 4), MASKS[:, 0].float(), "positions", MASKS.flatten(1), 2),
    "tokens": (outputs(6, 5), TOKENS, "positions", TOKENS, 5),
    "tokens, classes first": (outputs(5, 6), TOKENS, "positions", TOKENS, 5),
    "padded tokens": (outputs(6, 5), PADDED, "positions", PADDED.masked_fill(PADDED < 0, -1), 5),
    "several labels": (outputs(5), MANY, "multilabel", MANY.long(), 1),
    "several bool labels": (outputs(5), MANY.bool(), "multilabel", MANY.long(), 1),
    "several whole labels": (outputs(5), MANY.long(), "multilabel", MANY.long(), 1),
    "numbers": (outputs(2), IMAGES[:, 0, 0, :2], "numbers", IMAGES[:, 0, 0, :2], 1),
    "a number": (outputs(), IMAGES[:, 0, 0, 0], "numbers", IMAGES[:, 0, 0, :1], 1),
    "a number in a column": (outputs(1), IMAGES[:, 0, 0, :1], "numbers", IMAGES[:, 0, 0, :1], 1),
    "images": (outputs(1, 4, 4), IMAGES, "numbers", IMAGES.flatten(1), 1),
    "flattened images": (outputs(1, 4, 4), IMAGES.flatten(1), "numbers", IMAGES.flatten(1), 1),
}


@pytest.mark.parametrize(("out", "target", "kind", "values", "classes"), READ.values(), ids=READ)
def test_shapes_and_values_show_the_task(out, target, kind, values, classes):
    found = read(out, target)
    assert (found.kind, found.num_classes) == (kind, classes)
    assert torch.equal(found.values, values)
    assert bool(found.note) == ("floating" in kind or (target.is_floating_point() and classes > 2))


@pytest.mark.parametrize("target", [(IMAGES > 0.5).float(), (IMAGES.flatten(1) > 0.5).float()])
def test_an_autoencoder_of_zeros_and_ones_predicts_numbers(target):
    out = outputs(*target.shape[1:])
    assert read(out, target, {"x": target.clone()}).kind == "numbers"
    assert read(out, target).kind in ("positions", "multilabel")


def test_the_task_may_be_given():
    assert read(outputs(5), MANY, task="numbers").kind == "numbers"
    assert read(outputs(5), torch.eye(5)[torch.arange(N) % 5], task="multilabel").kind == "multilabel"
    counts = read(outputs(1), torch.arange(N), task="numbers")
    assert counts.values.tolist() == [[float(i)] for i in range(N)]
    positions = read(outputs(5), MANY.long(), task="classes")
    assert (positions.kind, positions.positions.shape) == ("positions", (5,))


def test_what_has_no_label_is_left_out():
    labels = LABELS.masked_fill(LABELS == 1, -1)
    found = read(outputs(3), labels, ignore_index=-1)
    assert found.kept.tolist() == (LABELS != 1).nonzero()[:, 0].tolist()
    assert read(outputs(3), LABELS).kept is None
    tokens = torch.where(torch.arange(N)[:, None] < 4, -100, TOKENS)
    assert read(outputs(6, 5), tokens).kept.tolist() == list(range(4, N))
    several = read(outputs(5), MANY.masked_fill(MANY == 1, -1), ignore_index=-1)
    assert several.values.unique().tolist() == [-1, 0]


RANGE = "`target` must lie in [0, num_classes) = [0, "
REFUSED = {
    "unlabelled": (outputs(3), LABELS - 1, {}, RANGE + "3), got the label -1. Pass `ignore_index=-1` if"),
    "unlabelled tokens": (outputs(6, 5), TOKENS - 1, {}, RANGE + "5), got the label -1. Pass `ignore_index=-1` if"),
    "counts": (outputs(1), torch.arange(N) + 152, {}, RANGE + "2), got the label 163. Pass task='numbers' if"),
    "too large": (outputs(3), LABELS + 1, {}, RANGE + "3), got the label 3."),
    "none": (outputs(3), LABELS * 0 - 100, {}, "`target` must hold labels, got -100, `ignore_index`, alone."),
    "coarser labels": (
        outputs(3, 4, 4),
        PIXELS[:, ::2],
        {},
        "`target` must have one label per sample, shape [samples],",
    ),
    "no zeros and ones": (outputs(5), MANY + 1, {"task": "multilabel"}, "`target` must hold a zero or a one for each"),
    "too few numbers": (
        outputs(5),
        MANY[:, :2],
        {"task": "numbers"},
        "`target` must hold one number for each output, 5",
    ),
    "not finite": (outputs(2), MANY[:, :2] / 0, {}, "`target` must hold finite numbers, got NaN or inf."),
    "samples of pixels": (outputs(3, 4), LABELS, {}, "The model's output must have shape [samples, classes] = [2, "),
}


@pytest.mark.parametrize(("out", "target", "options", "text"), REFUSED.values(), ids=REFUSED)
def test_targets_that_do_not_fit_are_refused(out, target, options, text):
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        read(out, target, **options)


NO_LABELS = {
    "one-hot": (outputs(3), torch.eye(3)[LABELS]),
    "whole one-hot": (outputs(3), torch.eye(3)[LABELS].long()),
    "probabilities": (outputs(3), torch.full((N, 3), 1 / 3)),
    "one-hot pixels": (outputs(3, 4, 4), torch.eye(3)[PIXELS].movedim(-1, 1)),
}


@pytest.mark.parametrize(("out", "target"), NO_LABELS.values(), ids=NO_LABELS)
def test_one_hot_rows_are_refused_with_the_way_out(out, target):
    with pytest.raises(TypeError, match=r"rows that sum to 1, .*`target.argmax\(1\)`"):
        read(out, target)


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"task": "regression"}, ValueError, "`task` must be one of 'auto', 'classes', 'multilabel', 'numbers'"),
        ({"accuracy_of": "pixels"}, ValueError, "`accuracy_of` must be one of 'samples', 'labels'"),
        ({"ignore_index": 0.5}, TypeError, "`ignore_index` must be a whole number, got 0.5."),
    ],
)
def test_options_that_do_not_fit_are_refused(options, kind, text):
    with pytest.raises(kind, match=f"^{re.escape(text)}"):
        TargetOptions(**options)


SQUARE = torch.arange(N * 6).reshape(N, 6) % 6


@pytest.mark.parametrize(("inputs", "last"), [(torch.zeros(N, 6, 4), False), (SQUARE.clone(), True)])
def test_as_many_classes_as_positions_come_last_for_tokens_and_first_for_all_else(inputs, last):
    found = read(outputs(6, 6), SQUARE, inputs)
    assert (found.positions.shape, found.positions.last, found.num_classes) == ((6,), last, 6)
    order = "positions, classes" if last else "classes, positions"
    assert found.note.startswith(f"outputs [6, 6] per sample are read as [{order}]; if they are not, let `forward=` ")
    assert read(outputs(6, 5), TOKENS, TOKENS).note == ""
    # Images of whole numbers are no tokens.
    assert not read(outputs(4, 4, 4), PIXELS, PIXELS.clone()).positions.last


@pytest.mark.parametrize(
    ("labels", "end"),
    [
        (LABELS + 1, "got the label 3. Subtract 1 from labels that begin at 1."),
        (LABELS.masked_fill(LABELS == 1, 255), "got the label 255. Pass `ignore_index=255` if that marks what has no "),
        (LABELS * 7 - 5, "got the label -5. Pass task='numbers' if these are numbers to be predicted."),
    ],
)
def test_labels_out_of_range_are_answered_with_what_they_may_be(labels, end):
    with pytest.raises(ValueError, match=re.escape(end)):
        read(outputs(3), labels)
