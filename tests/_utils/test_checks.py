"""Every check lets sound arguments pass unchanged, and refuses others with a sentence that shows what was given."""

import math
import re

import pytest
import torch
from torch import nn

from netdyn._utils import checks
from netdyn.engine.diagnose import diagnose
from netdyn.functional import class_tuning, rank_distribution, sample_basin, weight_basin
from netdyn.metrics import NeuronModes, RankDistribution, SampleBasin, WeightBasin
from networks import fill


def refused(kind, text):
    """The error of this kind, with this whole text."""
    return pytest.raises(kind, match=f"^{re.escape(text)}$")


@pytest.mark.parametrize("value", [0, 3, 10**9])
def test_whole_number_passes(value):
    assert checks.whole("rays", value, minimum=0) == value


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (0, ValueError, "`rays` must be at least 1, got 0."),
        (-2, ValueError, "`rays` must be at least 1, got -2."),
        (2.0, TypeError, "`rays` must be a whole number, got 2.0 of type float."),
        ("8", TypeError, "`rays` must be a whole number, got '8' of type str."),
        (True, TypeError, "`rays` must be a whole number, got True of type bool."),
        (None, TypeError, "`rays` must be a whole number, got None of type NoneType."),
    ],
)
def test_what_is_no_whole_number_is_refused(value, kind, text):
    with refused(kind, text):
        checks.whole("rays", value)


@pytest.mark.parametrize("value", [1e-9, 0.5, 1 - 1e-9])
def test_fraction_passes(value):
    assert checks.fraction("alpha", value) == value


@pytest.mark.parametrize("value", [0, 1, 0.0, 1.0, -0.1, 1.5, math.nan, math.inf, True, "0.5", None])
def test_what_is_no_fraction_is_refused(value):
    with refused(ValueError, f"`alpha` must lie strictly between 0 and 1, got {value!r}."):
        checks.fraction("alpha", value)


@pytest.mark.parametrize("value", [1e-300, 3, 0.05])
def test_positive_number_passes(value):
    assert checks.positive("rel_tol", value) == value


@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan, True, "1", None])
def test_what_is_not_positive_is_refused(value):
    with refused(ValueError, f"`rel_tol` must be a positive, finite number, got {value!r}."):
        checks.positive("rel_tol", value)


def test_noise_range_passes():
    assert checks.noise_range(1, 2) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (1.0, 1.0, "`low` must be smaller than `high`, got low=1 and high=1."),
        (10.0, 0.001, "`low` must be smaller than `high`, got low=10 and high=0.001."),
        (0.0, 1.0, "`low` must be a positive, finite number, got 0.0."),
        (0.1, math.inf, "`high` must be a positive, finite number, got inf."),
    ],
)
def test_empty_or_boundless_noise_range_is_refused(low, high, text):
    with refused(ValueError, text):
        checks.noise_range(low, high)


def test_choice_passes():
    assert checks.choice("normalization", "layer", ["layer", "global"]) == "layer"


def test_unknown_choice_is_refused_with_the_options():
    with refused(ValueError, "`normalization` must be one of 'layer', 'global', got 'channel'."):
        checks.choice("normalization", "channel", ["layer", "global"])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64])
def test_labels_of_any_integer_type_become_int64(dtype):
    labels = checks.class_labels(torch.tensor([0, 2, 1], dtype=dtype), 3, 3)
    assert labels.dtype == torch.int64
    assert labels.tolist() == [0, 2, 1]


BAD_LABELS = {
    "list": ([0, 1], TypeError, "`target` must be a tensor of class labels, got list."),
    "float": (
        torch.tensor([0.25, 1.0]),
        TypeError,
        "`target` must hold whole class labels (an integer dtype), got dtype torch.float32. "
        "Convert one-hot or probability targets with `target.argmax(1)`.",
    ),
    "negative": (
        torch.tensor([0, -1]),
        ValueError,
        "`target` must lie in [0, num_classes) = [0, 2), got the label -1.",
    ),
    "too large": (
        torch.tensor([0, 2]),
        ValueError,
        "`target` must lie in [0, num_classes) = [0, 2), got the label 2.",
    ),
    "one-hot": (
        torch.eye(2, dtype=torch.int64),
        ValueError,
        "`target` must have one label per sample, shape [samples], got shape [2, 2].",
    ),
    "too many": (
        torch.tensor([0, 1, 0]),
        ValueError,
        "`target` must have one label for each of the 2 samples, got 3.",
    ),
}


@pytest.mark.parametrize(("target", "kind", "text"), BAD_LABELS.values(), ids=BAD_LABELS)
def test_what_are_no_labels_is_refused(target, kind, text):
    with refused(kind, text):
        checks.class_labels(target, 2, 2)


def test_no_labels_at_all_pass():
    assert checks.class_labels(torch.zeros(0, dtype=torch.int64), 2).shape == (0,)


FIELDS, PATHWAY = torch.tensor([[0.0], [1.0]]), torch.tensor([[-1.0], [1.0]])


def linear():
    return fill(nn.Linear(1, 2))


def computed(metric, *arguments):
    metric.update(*arguments)
    return metric.compute()


#: Everything public that takes class labels of two samples and two classes.
TAKERS_OF_LABELS = {
    "class_tuning": lambda target: class_tuning(FIELDS, target, 2),
    "rank_distribution": lambda target: rank_distribution(FIELDS, target, PATHWAY, 2),
    "NeuronModes": lambda target: NeuronModes(2).update(FIELDS, target, PATHWAY),
    "RankDistribution": lambda target: RankDistribution(2).update(FIELDS, target, PATHWAY),
    "sample_basin": lambda target: sample_basin(linear(), FIELDS, target),
    "weight_basin": lambda target: weight_basin(linear(), FIELDS, target),
    "SampleBasin": lambda target: computed(SampleBasin(), linear(), FIELDS, target),
    "WeightBasin": lambda target: computed(WeightBasin(), linear(), FIELDS, target),
    "diagnose": lambda target: diagnose(linear(), FIELDS, target, measure=["sample_basin"]),
}


#: Some say more, of outputs and of options.
BEGINS = {
    "float": "`target` must hold whole class labels",
    "negative": "`target` must lie in [0, num_classes) = [0, 2), got the label -1.",
    "too large": "`target` must lie in [0, num_classes) = [0, 2), got the label 2.",
}


@pytest.mark.parametrize("taker", TAKERS_OF_LABELS.values(), ids=TAKERS_OF_LABELS)
@pytest.mark.parametrize("bad", BEGINS)
def test_every_taker_of_labels_refuses_bad_ones(taker, bad):
    target, kind, _ = BAD_LABELS[bad]
    with pytest.raises(kind, match=f"^{re.escape(BEGINS[bad])}"):
        taker(target)


@pytest.mark.parametrize("taker", TAKERS_OF_LABELS.values(), ids=TAKERS_OF_LABELS)
def test_every_taker_of_labels_refuses_too_many(taker):
    with pytest.raises(ValueError, match=r"^`target` must have one (label|entry) for each of the 2 samples, got .*3"):
        taker(torch.tensor([0, 1, 0]))


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (
            [0, 1],
            TypeError,
            "`target` must be a tensor with one entry per sample, got list. Convert it with "
            "`torch.as_tensor`, names of classes to numbers first.",
        ),
        (torch.zeros(3, 2), ValueError, "`target` must have one entry for each of the 2 samples, got 3."),
        (torch.tensor(1), ValueError, "`target` must have one entry for each of the 2 samples, got a single number."),
    ],
)
def test_what_does_not_have_one_entry_per_sample_is_refused(value, kind, text):
    checks.entries("target", torch.zeros(2, 5), 2)
    with refused(kind, text):
        checks.entries("target", value, 2)


def test_matrix_passes_detached():
    value = torch.zeros(2, 3, requires_grad=True)
    assert not checks.matrix("fields", value, "[samples, units]").requires_grad


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        ([[1.0]], TypeError, "`fields` must be a tensor of shape [samples, units], got list."),
        (torch.zeros(3), ValueError, "`fields` must have shape [samples, units], got shape [3]."),
        (torch.zeros(3, 2, 1), ValueError, "`fields` must have shape [samples, units], got shape [3, 2, 1]."),
    ],
)
def test_what_is_no_matrix_is_refused(value, kind, text):
    with refused(kind, text):
        checks.matrix("fields", value, "[samples, units]")


def test_different_units_are_refused_with_both_numbers():
    text = "`fields` and `pathway` must have the same units, got 3 units in `fields` and 4 in `pathway`."
    with refused(ValueError, text):
        checks.same_units("fields", torch.zeros(2, 3), "pathway", torch.zeros(2, 4))


@pytest.mark.parametrize("metric", [NeuronModes, RankDistribution])
def test_metrics_refuse_fields_and_pathway_of_different_units(metric):
    with refused(
        ValueError, "`fields` and `pathway` must have the same units, got 1 units in `fields` and 3 in `pathway`."
    ):
        metric(2).update(FIELDS, torch.tensor([0, 1]), torch.zeros(2, 3))


@pytest.mark.parametrize("metric", [NeuronModes, RankDistribution])
@pytest.mark.parametrize("name", ["fields", "pathway"])
def test_metrics_refuse_what_is_no_tensor(metric, name):
    arguments = {"fields": FIELDS, "target": torch.tensor([0, 1]), "pathway": PATHWAY} | {name: [[1.0], [2.0]]}
    with pytest.raises(TypeError, match=rf"^`{name}` must be a tensor of shape .*, got list\.$"):
        metric(2).update(**arguments)


def test_nearest_names_are_listed_nearest_first():
    assert checks.nearest("encoder.fc", ["head", "encoder.fc1", "encoder.norm"]) == (
        "The nearest are 'encoder.fc1', 'encoder.norm'."
    )


def test_a_name_near_to_none_is_answered_with_what_there_is():
    assert checks.nearest("zzz", "abcdefg") == "The nearest are 'a', 'b', 'c', 'd', 'e'."
    assert checks.nearest("zzz", []) == "There are none."


def net():
    return fill(nn.Sequential(nn.Linear(1, 20), nn.ReLU(), nn.Linear(20, 2)))


#: Everything public that measures a basin, called with its sample arguments and these options.
MEASURES = {
    "sample_basin": lambda **options: sample_basin(net(), FIELDS, torch.tensor([0, 1]), **options),
    "weight_basin": lambda **options: weight_basin(net(), FIELDS, torch.tensor([0, 1]), **options),
    "SampleBasin": lambda **options: SampleBasin(**options),
    "WeightBasin": lambda **options: WeightBasin(**options),
}

BAD_OPTIONS = [
    ({"low": 2.0, "high": 1.0}, ValueError, "`low` must be smaller than `high`, got low=2 and high=1."),
    ({"low": 1.0, "high": 1.0}, ValueError, "`low` must be smaller than `high`, got low=1 and high=1."),
    ({"low": -1.0}, ValueError, "`low` must be a positive, finite number, got -1.0."),
    ({"accuracy": 0.0}, ValueError, "`accuracy` must lie strictly between 0 and 1, got 0.0."),
    ({"accuracy": 1.0}, ValueError, "`accuracy` must lie strictly between 0 and 1, got 1.0."),
    ({"accuracy": 75}, ValueError, "`accuracy` must lie strictly between 0 and 1, got 75."),
    ({"rays": 0}, ValueError, "`rays` must be at least 1, got 0."),
    ({"rays": 1.5}, TypeError, "`rays` must be a whole number, got 1.5 of type float."),
    ({"seed": -1}, ValueError, "`seed` must be at least 0, got -1."),
    ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1, got 0."),
]


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
@pytest.mark.parametrize(("options", "kind", "text"), BAD_OPTIONS, ids=[str(option) for option, *_ in BAD_OPTIONS])
def test_every_basin_refuses_bad_options_at_once(measure, options, kind, text):
    with refused(kind, text):
        measure(**options)


def test_a_sample_basin_refuses_bad_bisections_at_once():
    with refused(ValueError, "`rel_tol` must be a positive, finite number, got 0.0."):
        MEASURES["sample_basin"](rel_tol=0.0)


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ({"measure": "modes"}, "`measure` must be a list of measures, got 'modes'. Write measure=['modes']."),
        ({"layers": "0"}, "`layers` must be a list of names or globs, got '0'. Write layers=['0']."),
        ({"noise_at": "0"}, "`noise_at` must be a list of names of modules or inputs, got '0'. Write noise_at=['0']."),
        ({"layers": 3}, "`layers` must be a list of names or globs, got 3."),
    ],
    ids=str,
)
def test_diagnose_refuses_a_name_instead_of_a_list(option, text):
    with refused(TypeError, text):
        diagnose(net(), FIELDS, torch.tensor([0, 1]), **option)


@pytest.mark.parametrize("name", ["weight_basin", "WeightBasin"])
def test_weight_basins_refuse_an_unknown_normalization(name):
    with refused(ValueError, "`normalization` must be one of 'layer', 'global', got 'filter'."):
        MEASURES[name](normalization="filter")


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"sample_rays": 0}, ValueError, "`sample_rays` must be at least 1, got 0."),
        ({"weight_rays": 0}, ValueError, "`weight_rays` must be at least 1, got 0."),
        ({"low": 3.0, "high": 1.0}, ValueError, "`low` must be smaller than `high`, got low=3 and high=1."),
        ({"accuracy": 1.5}, ValueError, "`accuracy` must lie strictly between 0 and 1, got 1.5."),
        ({"alpha": 0.0}, ValueError, "`alpha` must lie strictly between 0 and 1, got 0.0."),
        ({"max_units": 0}, ValueError, "`max_units` must be at least 1, got 0."),
        ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1, got 0."),
        ({"normalization": "x"}, ValueError, "`normalization` must be one of 'layer', 'global', got 'x'."),
        (
            {"measure": ["mode"]},
            ValueError,
            "`measure` must be one of 'modes', 'linear', 'sample_basin', 'weight_basin', 'batchnorm', 'maps', "
            "'companions', got 'mode'.",
        ),
        ({"num_classes": 3}, ValueError, "`num_classes` must be that of the model's output, 2 classes, got 3."),
    ],
    ids=str,
)
def test_diagnose_refuses_bad_options_by_their_own_name(options, kind, text):
    with refused(kind, text):
        diagnose(net(), FIELDS, torch.tensor([0, 1]), **options)
