"""Right and wrong outputs, and criteria of the user's own."""

import re

import pytest
import torch
from torch import nn

from netdyn.functional import sample_basin, weight_basin
from netdyn.probes.criteria import apply_criterion, as_logits, predictions, right_class, right_probability
from networks import fill, samples

NAN, INF = torch.nan, torch.inf


def test_the_largest_logit_is_the_prediction():
    outputs = torch.tensor([[3.0, 1.0, 2.0], [0.0, 1.0, 2.0], [-3.0, -1.0, -2.0]])
    assert right_class(outputs, torch.tensor([0, 2, 0])).tolist() == [True, True, False]


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_a_single_logit_is_right_by_its_sign_and_zero_is_class_0(shape):
    outputs = torch.tensor([-1.0, 2.0, 0.0, 0.1]).reshape(shape)
    assert right_class(outputs, torch.tensor([0, 1, 0, 0])).tolist() == [True, True, True, False]


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_a_single_probability_is_right_by_its_half(shape):
    outputs = torch.tensor([0.4, 0.6, 0.5]).reshape(shape)
    assert right_probability(outputs, torch.tensor([0, 1, 0])).tolist() == [True, True, True]
    assert right_probability(outputs, torch.tensor([1, 0, 1])).tolist() == [False, False, False]


@pytest.mark.parametrize("row", [[NAN, 1.0], [0.0, NAN], [-INF, 1.0], [0.0, INF]])
def test_a_sample_with_a_non_finite_output_is_wrong(row):
    outputs = torch.tensor([row, [0.0, 1.0]])
    assert right_class(outputs, torch.tensor([1, 1])).tolist() == [False, True]
    assert right_class(outputs, torch.tensor([0, 0])).tolist() == [False, False]


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_single_non_finite_output_is_wrong(value):
    for target in (0, 1):
        assert not right_class(torch.tensor([value]), torch.tensor([target])).item()
        assert not right_probability(torch.tensor([value]), torch.tensor([target])).item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_any_real_dtype_is_judged(dtype):
    outputs = torch.tensor([[1, 2], [2, 1]], dtype=dtype)
    assert right_class(outputs, torch.tensor([1, 1])).tolist() == [True, False]


def test_predictions_of_one_and_of_many_logits():
    assert predictions(torch.tensor([[-1.0], [1.0]])).tolist() == [0, 1]
    assert predictions(torch.tensor([[1.0, 0.0], [0.0, 1.0]])).tolist() == [0, 1]


@pytest.mark.parametrize("shape", [(3, 2, 4), (2, 3), (), (2,)])
def test_outputs_of_another_shape_are_refused_with_the_shape(shape):
    with pytest.raises(ValueError, match=re.escape(f"[3, classes], got shape {list(shape)}.")):
        as_logits(torch.zeros(shape), 3)


@pytest.mark.parametrize("outputs", [(torch.zeros(3, 2), None), {"logits": torch.zeros(3, 2)}, None])
def test_outputs_that_are_no_tensor_are_refused_with_their_type(outputs):
    text = rf"must be a tensor \[samples, classes\], got {type(outputs).__name__}\. Wrap the model in a module"
    with pytest.raises(TypeError, match=text):
        as_logits(outputs, 3)


def test_the_result_of_a_criterion_is_taken_as_it_is():
    right = apply_criterion(lambda outputs, target: outputs[:, 0] > target, torch.eye(2), torch.tensor([0.5, 0.5]))
    assert right.tolist() == [True, False]


BAD_CRITERIA = {
    "float": (
        lambda outputs, target: outputs[:, 0],
        TypeError,
        "`criterion` must return a boolean tensor [samples], got torch.float32.",
    ),
    "list": (
        lambda outputs, target: [True] * len(target),
        TypeError,
        "`criterion` must return a boolean tensor [samples], got list.",
    ),
    "mean": (
        lambda outputs, target: (outputs > 0).all(),
        ValueError,
        "`criterion` must return one boolean per sample, shape [4], got shape [].",
    ),
    "matrix": (
        lambda outputs, target: outputs > 0,
        ValueError,
        "`criterion` must return one boolean per sample, shape [4], got shape [4, 2].",
    ),
}


@pytest.mark.parametrize(("criterion", "kind", "text"), BAD_CRITERIA.values(), ids=BAD_CRITERIA)
def test_a_criterion_that_returns_something_else_is_refused(criterion, kind, text):
    with pytest.raises(kind, match=f"^{re.escape(text)}$"):
        apply_criterion(criterion, torch.zeros(4, 2), torch.zeros(4))


@pytest.mark.parametrize("basin", [sample_basin, weight_basin])
@pytest.mark.parametrize(("criterion", "kind", "text"), BAD_CRITERIA.values(), ids=BAD_CRITERIA)
def test_both_basins_refuse_such_a_criterion(basin, criterion, kind, text):
    with pytest.raises(kind, match=f"^{re.escape(text)}$"):
        basin(fill(nn.Linear(3, 2)), samples(4, shape=(3,)), torch.zeros(4, dtype=torch.int64), criterion=criterion)
