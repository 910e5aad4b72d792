"""The numbers of a report by tag, its other forms, and what networks of known kinds read as."""

import json
import math
import pickle
import re

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from clouds import SAMPLES, network, probe, trained
from made_reports import Reader
from netdyn import Report, diagnose
from netdyn.tags import HISTOGRAMS, SCALARS


@pytest.fixture(scope="module")
def report():
    """Everything about a trained network, with a validation probe."""
    x, target = probe()
    net = trained(network(), x, target)
    return diagnose(net, x, target, weight_layers="each", val_inputs=x[:50], val_target=target[:50])


# Tags and values -----------------------------------------------------------------------------------------------------


def patterns(table):
    return [
        re.compile(re.sub(r"<\w+>", "[^/]+", re.escape(tag.name).replace(r"\<", "<").replace(r"\>", ">")))
        for tag in table
    ]


def test_every_scalar_has_one_place_in_the_table_and_a_finite_value(report):
    values = report.scalars()
    for tag, value in values.items():
        assert sum(pattern.fullmatch(tag) is not None for pattern in patterns(SCALARS)) == 1, tag
        assert isinstance(value, float)
        assert math.isfinite(value)
    # All that is in the table, but for what the callback adds.
    missing = [tag.name for tag in SCALARS if not any(p.fullmatch(v) for p in patterns([tag]) for v in values)]
    # This network has no batch normalisation.
    absent = {"batchnorm/gap", "batchnorm/train_gap", "netdyn/seconds", "netdyn/overhead", "netdyn/skipped"}
    changes = {f"basin/{s}/{tag}" for s in ("sample", "weight") for tag in ("change", "change_low", "change_high")}
    companions = {tag.name for tag in SCALARS if tag.name.startswith("companions/")}
    assert set(missing) == absent | changes | companions


def test_no_tag_is_both_leaf_and_folder(report):
    tags = [*report.scalars(), *report.histograms()]
    assert len(tags) == len(set(tags))
    folders = {tag.rsplit("/", i)[0] for tag in tags for i in range(1, tag.count("/") + 1)}
    assert folders.isdisjoint(tags)


def test_scalars_are_the_reports_numbers(report):
    values = report.scalars()
    assert values["probe/accuracy"] == report.accuracy
    assert values["modes/opt_fraction/2"] == report.layers[1].opt_fraction
    assert values["linear/affine_defect/0"] == report.layers[0].affine_defect
    basin = report.sample_basin
    found = [values[f"basin/sample/{name}"] for name in ("radius", "low", "high", "censored")]
    assert found == [basin.radius, *basin.interval, basin.censored]
    assert [values[f"basin/sample/class_radius/{k}"] for k in range(5)] == basin.per_class.clamp(max=10).tolist()
    assert {f"basin/weight/layer_radius/{name}" for name in ("0.weight", "2.weight", "4.weight")} <= set(values)
    assert [values[f"coverage/{name}"] for name in report.coverage._fields] == list(report.coverage)
    assert not [tag for tag in values if tag.startswith("basin/weight/class_radius")]


class Deaf(nn.Module):
    """Always class 1, whatever its weights."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(2))

    def forward(self, x):
        return 0 * (x[:, :2] @ self.weight) + torch.tensor([0.0, 1.0])


@pytest.mark.filterwarnings("ignore:The largest noise level:UserWarning")
@pytest.mark.filterwarnings("ignore:`accuracy` is:UserWarning", "ignore:The probe holds:UserWarning")
def test_infinite_radii_are_sent_as_the_highest_noise_level():
    found = diagnose(
        Deaf(), probe()[0], torch.ones(SAMPLES, dtype=torch.int64), measure=["sample_basin", "weight_basin"], high=7.0
    )
    assert found.sample_basin.radius == found.weight_basin.radius == math.inf
    values = found.scalars()
    for space in ("sample", "weight"):
        assert [values[f"basin/{space}/{name}"] for name in ("radius", "low", "high")] == [7, 7, 7]
        assert values[f"basin/{space}/censored"] == getattr(found, f"{space}_basin").censored > 0.9
    assert "basin/sample/radii" not in found.histograms()
    # Class 0 is absent: its radius is NaN, and not sent.
    assert values["basin/sample/class_radius/1"] == 7
    assert "basin/sample/class_radius/0" not in values


def test_shares_without_a_rule_are_not_sent():
    x, target = probe(classes=2)
    found = diagnose(network(classes=2, width=5), x, target, measure=["modes"])
    assert [layer.rule for layer in found.layers] == ["none", "none"]
    values = found.scalars()
    assert "modes/opt_fraction/0" not in values
    assert "modes/rpd_gradient/0" in values


def test_histograms_are_finite_float32_and_not_empty(report):
    values = report.histograms()
    for tag, value in values.items():
        assert sum(pattern.fullmatch(tag) is not None for pattern in patterns(HISTOGRAMS)) == 1, tag
        assert value.dtype == torch.float32
        assert value.isfinite().all()
        assert len(value) > 0
    torch.testing.assert_close(values["basin/sample/radii"], report.sample_basin.spread().log10().float())
    found = report.weight_basin.radii
    torch.testing.assert_close(values["basin/weight/radii"], found[found.isfinite()].log10().float())
    assert len(values["modes/order_index/0"]) == 40


def test_layer_of_constant_units_has_no_histogram():
    net = network()
    with torch.no_grad():
        net[0].weight.zero_()
    found = diagnose(net, *probe(), measure=["modes"])
    assert found.layers[0].constant_fraction == 1
    assert math.isnan(found.layers[0].opt_fraction)
    assert "modes/order_index/0" not in found.histograms()


# Forms ---------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The largest noise level:UserWarning")
@pytest.mark.filterwarnings("ignore:`accuracy` is:UserWarning", "ignore:The probe holds:UserWarning")
def test_plain_form_goes_through_json_without_nan(report):
    deaf = diagnose(
        Deaf(), probe()[0], torch.ones(SAMPLES, dtype=torch.int64), measure=["sample_basin", "weight_basin"]
    )
    for one in (report, deaf):
        plain = one.to_dict()
        assert json.loads(json.dumps(plain, allow_nan=False)) == plain
        assert json.loads(one.to_json()) == plain
    plain = report.to_dict()
    assert plain["layers"][0]["name"] == "0"
    assert plain["layers"][0]["opt_fraction"] == report.layers[0].opt_fraction
    assert plain["sample_basin"]["radius"] == report.sample_basin.radius
    assert set(plain["weight_basin"]["per_layer"]) == {"0.weight", "2.weight", "4.weight"}
    assert plain["findings"] == report.findings()
    assert deaf.to_dict()["sample_basin"]["radius"] is None


def test_report_pickles(report):
    assert pickle.loads(pickle.dumps(report)).to_dict() == report.to_dict()
    assert isinstance(report, Report)


# Real networks -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`accuracy` is:UserWarning")
@pytest.mark.parametrize("depth", [2, 5, 9])
@pytest.mark.parametrize("seed", range(5))
def test_untrained_networks_read_as_untrained(depth, seed):
    x, target = probe()
    net = network(depth=depth, seed=seed)
    # Shifting all labels by 0 to 4 gives five accuracies that sum to 1: the least is no more than guessing gives.
    right = [float((net(x).argmax(1) == (target + shift) % 5).float().mean()) for shift in range(5)]
    shifted = (target + right.index(min(right))) % 5
    told = diagnose(net, x, shifted, measure=["modes", "linear", "sample_basin"])
    assert told.accuracy <= 0.2
    sentences = told.findings()
    assert sentences[0].startswith("The network is untrained")
    assert not [s for s in sentences if "linearly" in s or "phase" in s]


def test_a_trained_network_reads_as_trained():
    x, target = probe()
    made = diagnose(trained(network(depth=3), x, target, steps=200), x, target, weight_layers="each")
    assert made.accuracy > 0.95
    words = str(made)
    assert "untrained" not in words
    assert "Order is preserved most in layer" in words
    assert "act linearly" in words or "acts linearly" in words
    assert re.search(r"^sample basin: radius \d\S* at accuracy 0.5 \(95 % interval", words, re.MULTILINE)
    assert re.search(r"^weight basin: radius \d\S* at accuracy 0.5 \(95 % interval", words, re.MULTILINE)
    Reader(made._repr_html_())


# Sentences on other samples of the same network -----------------------------------------------------------------------


def digits():
    """1,797 handwritten digits with pixels in [0, 1], shuffled."""
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return torch.tensor(x / 16, dtype=torch.float32)[order], torch.tensor(y)[order]


def test_twelve_probes_of_one_network_never_give_opposite_sentences_about_its_depth():
    """Seeds 0 to 5: six networks of 89 % accuracy, each on twelve probes of 400 digits (standard error 1.6 points).

    The functional depths of three of them lie between 1 and 3, or 0 and 3: sentences from these alone would differ.
    """
    x, y = digits()
    depths, told = [], []
    for seed in range(6):
        torch.manual_seed(seed)
        net = nn.Sequential(*(m for w in (64, 24, 24) for m in (nn.Linear(w, 24), nn.ReLU())), nn.Linear(24, 10))
        optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
        while float((net(x).argmax(1) == y).double().mean()) < 0.885:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
        draw = torch.Generator().manual_seed(seed)
        probes = [torch.randperm(len(x), generator=draw)[:400] for _ in range(12)]
        reports = [diagnose(net, x[rows], y[rows], measure=["linear"]) for rows in probes]
        depths.append({report.functional_depth for report in reports})
        told.append({re.sub(": .*", "", s) for report in reports for s in report.findings() if "linearly" in s})
    assert sum(len(found) > 1 for found in depths) >= 3
    assert all(len(sentences) <= 1 for sentences in told)
    assert any(told)


def with_batchnorm(x, y):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for step in range(150):
        rows = torch.arange(step * 100, step * 100 + 100) % len(x)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    return net


def test_lagging_statistics_are_told_from_shifted_data():
    """Statistics spoilt on purpose, or held-out images brightened by 0.3: what the gap on the training probe is for."""
    x, y = digits()
    train, val = (x[:1000], y[:1000]), (x[1000:], y[1000:])
    net = with_batchnorm(*train)

    def told(network, held_out):
        report = diagnose(network, *train, val_inputs=held_out, val_target=val[1], measure=["batchnorm"])
        return report, [s for s in report.findings() if "batch statistics" in s]

    assert told(net, val[0])[1] == []
    shifted, (sentence,) = told(net, val[0] + 0.3)
    assert shifted.batchnorm_gap > 0.1
    assert shifted.batchnorm_train_gap <= 0.02
    assert "the validation data are distributed otherwise" in sentence
    assert "lag" not in sentence
    with torch.no_grad():
        net[1].running_mean += 1.0
        net[1].running_var *= 9.0
    spoilt, (sentence,) = told(net, val[0])
    assert min(spoilt.batchnorm_gap, spoilt.batchnorm_train_gap) > 0.02
    assert "the running statistics lag behind or are corrupted" in sentence
    assert spoilt.scalars()["batchnorm/train_gap"] == spoilt.batchnorm_train_gap
