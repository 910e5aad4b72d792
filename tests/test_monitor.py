"""The monitor in a training loop without Lightning: when it measures, what it sends, what it survives."""

import copy
import io
import itertools
import logging
import math
import re
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.tensorboard import SummaryWriter

from clouds import FEATURES, probe
from netdyn import DynamicsMonitor, DynamicsWarning, Monitor, budget, diagnose, monitor
from netdyn._utils import checks
from netdyn.loggers.tensorboard import last_layout, layout, markdown
from netdyn.tags import FIGURES, HISTOGRAMS, SCALARS

STEPS = 12
#: Cheap measurements, where the numbers are not the subject.
MODES = {"measure": ["modes"], "figures": "never"}


def made(seed=0):
    """A network with batch normalisation, and its optimiser."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Linear(FEATURES, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 5)
        )
    return net, torch.optim.Adam(net.parameters(), lr=0.01)


def step_of(net, optimiser):
    x, target = probe()
    optimiser.zero_grad()
    nn.functional.cross_entropy(net(x), target).backward()
    optimiser.step()


def loop(watch, steps=STEPS, net=None, after=lambda step: None):
    """Train, measuring where the monitor asks for it; the network, and the report of each measurement by its step."""
    net, optimiser = made() if net is None else net
    reports = {}
    for step in range(steps + 1):
        if watch.due(step):
            reports[step] = watch.measure(net, step)
        if step < steps:
            step_of(net, optimiser)
            after(step)
    return net, reports


def events(folder):
    found = EventAccumulator(
        str(folder), size_guidance=dict.fromkeys(["scalars", "histograms", "images", "tensors"], 0)
    )
    found.Reload()
    return found


# A loop of one's own -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with everything on, its event file read back."""
    folder = tmp_path_factory.mktemp("run")
    x, target = probe()
    watch = Monitor((x, target), (x[:50], target[:50]), loggers=folder, schedule=[4, 9], weight_rays=2, detail="full")
    net, reports = loop(watch)
    watch.close(net, STEPS)
    return SimpleNamespace(watch=watch, net=net, reports=reports, folder=folder, events=events(folder))


def test_scalars_stand_at_the_steps_that_were_measured(run):
    assert list(run.reports) == [0, 4, 9]
    own = {"netdyn/seconds", "netdyn/overhead", "netdyn/skipped"}
    for step, report in run.reports.items():
        written = {
            tag: event.value
            for tag in run.events.Tags()["scalars"]
            for event in run.events.Scalars(tag)
            if event.step == step
        }
        assert own <= set(written)
        expected = {tag: float(np.float32(value)) for tag, value in report.scalars().items()}
        if not step:  # the untrained network has no basin
            zeros = {f"basin/{space}/{end}" for space in ("sample", "weight") for end in ("radius", "low", "high")}
            assert {expected.pop(tag) for tag in zeros} == {0.0}
        assert {tag: value for tag, value in written.items() if tag not in own} == expected
    assert {event.step for tag in run.events.Tags()["scalars"] for event in run.events.Scalars(tag)} == {0, 4, 9}


def test_histograms_stand_at_the_same_steps(run):
    for step, report in run.reports.items():
        for tag, values in report.histograms().items():
            (event,) = [event for event in run.events.Histograms(tag) if event.step == step]
            assert event.histogram_value.num == len(values)
            assert event.histogram_value.max == float(values.max())


def test_figures_show_both_ends(run):
    steps = {tag: [event.step for event in run.events.Images(tag)] for tag in run.events.Tags()["images"]}
    # The last report is of step 9. The maps and the curves of the classes are measured once more at the end.
    assert steps == {
        "0_netdyn/overview": [0, 4, 9],
        "modes/rpd": [0, 9],
        "linear/tail": [9],  # like the next two not of an untrained network
        "basin/curves": [9, STEPS],
        "wpa/subnetwork": [STEPS],
        "wpa/characteristic_maps": [0, STEPS],
        "modes/map": [9],  # a heat map needs more than one step
        "modes/gradient_map": [9],
        "linear/map": [9],
    }
    assert set(steps) == {tag.name for tag in FIGURES}


def test_the_table_of_tags_and_the_layout_are_written_once(run):
    (event,) = run.events.Tensors("netdyn/about/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert all(f"| `{tag.name}` |" in text for tag in (*SCALARS, *HISTOGRAMS, *FIGURES))
    assert last_layout(run.folder) == layout(run.watch.config.measure)
    assert len(run.events.Tensors("custom_scalars__config__")) == 1


def test_the_last_report_is_kept_as_it_was_measured(run):
    assert run.watch.report is run.reports[9]
    assert run.watch.history.steps == [0, 4, 9]
    assert (run.watch.evaluations, run.watch.skipped) == (3, 0)


def test_a_report_is_what_diagnose_gives_and_training_is_as_without(run):
    (net, optimiser), x, target = made(), *probe()
    for step in range(STEPS):
        if step in run.reports:
            report = diagnose(copy.deepcopy(net), x, target, val_inputs=x[:50], val_target=target[:50], weight_rays=2)
            # The radii of the classes are found only where figures are drawn.
            expected = {tag: v for tag, v in report.scalars().items() if not step or "class_radius" not in tag}
            # A report by itself knows of no earlier one.
            found = {tag: value for tag, value in run.reports[step].scalars().items() if "/change" not in tag}
            assert found == expected
        step_of(net, optimiser)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), run.net.state_dict().values(), strict=True))


# When ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0, 1, 2, 3, 5, 10, 20, 30]),
        ({"schedule": "log"}, [0, 1, 2, 3, 5, 10, 20, 30]),
        ({"every_n_train_steps": 8}, [0, 8, 16, 24, 32]),
        ({"schedule": [3, 7, 31]}, [0, 3, 7, 31]),
    ],
    ids=str,
)
def test_a_step_is_due_where_the_schedule_names_it(options, expected):
    watch = Monitor(probe(), **options)
    # Each step is asked for twice, as with accumulated gradients.
    assert [step for step in range(35) for _ in range(2) if watch.due(step)] == expected


def test_a_listed_step_that_is_jumped_over_is_taken_at_the_next_one():
    watch = Monitor(probe(), schedule=[3, 7])
    assert [step for step in range(0, 12, 2) if watch.due(step)] == [0, 4, 8]


def test_two_schedules_are_refused():
    text = "Only one of `every_n_train_steps` and `schedule` can be given, got every_n_train_steps=2 and schedule='log'"
    with pytest.raises(ValueError, match=f"^{text}"):
        Monitor(probe(), every_n_train_steps=2, schedule="log")


#: Seconds on the clock that stands still between steps. On the network a measurement would put them back.
CLOCK = [0.0]


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on only where it is told to."""
    CLOCK[0] = 0.0
    for module in (budget, monitor):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: CLOCK[0]))


def take(seconds):
    CLOCK[0] += seconds


def test_reading_the_probe_is_no_training(clock):
    watch = Monitor(DataLoader(TensorDataset(*probe())), unpack=lambda batch: take(30) or batch, **MODES)
    watch.start()
    take(10)
    watch.measure(made()[0], 1)
    assert watch.budget.trained() == pytest.approx(10)
    assert watch.budget.spent == pytest.approx(30)


@pytest.mark.parametrize("name", ["histograms", "layout", "report", "strict"])
def test_switches_are_true_or_false(name):
    with pytest.raises(TypeError, match=f"^`{name}` must be True or False, got 'never'.$"):
        Monitor(probe(), **{name: "never"})
    with pytest.raises(TypeError, match=r"^`on_fit_ends` must be True or False, got 1\.$"):
        DynamicsMonitor(on_fit_ends=1)


def test_a_step_in_place_of_the_model_is_named():
    with pytest.raises(TypeError, match=r"^`model` must be a torch.nn.Module, got int. The order is \(model, step\).$"):
        Monitor(probe()).measure(0, made()[0])


class Slow(nn.Module):
    """Each pass takes a quarter of a second, measured or not."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        take(0.25)
        return self.net(x)


def test_an_evaluation_that_the_budget_has_no_room_for_is_skipped(clock):
    told = []
    watch = Monitor(probe(), max_overhead=0.5, every_n_train_steps=1, **MODES)
    watch.inform = told.append
    net, optimiser = made()
    # A step of training takes its own pass and this.
    slow = Slow(net)
    costs = []
    _, reports = loop(
        watch, steps=40, net=(slow, optimiser), after=lambda step: (take(0.75), costs.append(watch.budget.last))
    )
    # The first one runs the probe once more, in another order.
    first, cost = costs[0], watch.budget.last
    assert 1 < cost < first < 10
    expected, spent, last = [0], first, first
    for step in range(1, 41):
        # A second per step.
        if spent + last <= 0.5 * step:
            expected.append(step)
            spent, last = spent + cost, cost
    assert [step for step, report in reports.items() if report is not None] == expected
    assert 2 < len(expected) < 20
    assert (watch.evaluations, watch.skipped) == (len(expected), 41 - len(expected))
    assert watch.scalars["netdyn/skipped"] == watch.skipped
    assert watch.scalars["netdyn/overhead"] == pytest.approx(spent / 40)
    assert spent / 40 <= 0.5
    watch.close()
    assert told == [
        f"netdyn measures 2 layers on 200 samples, at every optimiser step; the first evaluation took {first:.1f} s.",
        f"netdyn skipped {watch.skipped} evaluations to keep to max_overhead=0.5; the last values may be of an earlier "
        "step.",
        f"netdyn's verdict at step {expected[-1]}: {watch.report.verdict}",
    ]


def test_without_a_budget_nothing_is_skipped(clock):
    watch = Monitor(probe(), every_n_train_steps=1, **MODES)
    net, optimiser = made()
    loop(watch, steps=3, net=(Slow(net), optimiser))
    assert (watch.evaluations, watch.skipped) == (4, 0)
    assert watch.scalars["netdyn/overhead"] > 1


# What it is given ----------------------------------------------------------------------------------------------------


def as_pair():
    return probe()


def as_data_set():
    return TensorDataset(*probe())


def as_loader():
    return DataLoader(as_data_set(), batch_size=16, shuffle=True)


@pytest.mark.parametrize("given", [as_pair, as_data_set, as_loader])
def test_a_probe_may_be_a_pair_a_data_set_or_a_loader(given):
    net, _ = made()
    options = {"measure": ["modes", "sample_basin"]}
    report = Monitor(given(), probe()[:2], **options).measure(net, 0)
    # Of 200 samples with a probe of 1,024 all are taken, in whatever order.
    expected = diagnose(net, *probe(), **options)
    assert report.samples == 200
    assert report.accuracy == report.val_accuracy == expected.accuracy
    assert report.sample_basin.radius == expected.sample_basin.radius
    for one, other in zip(report.layers, expected.layers, strict=True):
        assert one.opt_fraction == other.opt_fraction
        assert one.rpd_gradient == pytest.approx(other.rpd_gradient, abs=1e-9)


def test_a_probe_is_cut_to_its_size_with_classes_in_proportion():
    report = Monitor(as_data_set(), probe_size=50, **MODES).measure(made()[0], 0)
    assert (report.samples, report.num_classes) == (50, 5)


def test_batches_may_be_unpacked():
    x, target = probe()

    class Named(torch.utils.data.Dataset):
        def __len__(self):
            return len(x)

        def __getitem__(self, i):
            return {"image": x[i], "label": target[i]}

    report = Monitor(Named(), unpack=lambda batch: (batch["image"], batch["label"]), **MODES).measure(made()[0], 0)
    assert report.samples == 200


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_was_given_stays_as_it_is(dtype):
    x, target = probe()
    x = x.to(dtype)
    before = x.clone()
    watch = Monitor((x, target), **MODES)
    watch.measure(made()[0].to(dtype), 0)
    assert watch.given_probe[0] is x
    assert watch.probe.inputs.dtype == x.dtype == dtype
    assert torch.equal(x, before)


@pytest.mark.gpu
def test_a_probe_goes_to_the_networks_device_and_stays_where_it_was():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x, target = probe()
    watch = Monitor((x, target), **MODES)
    report = watch.measure(made()[0].cuda(), 0)
    assert (x.device.type, watch.probe.inputs.device.type) == ("cpu", "cuda")
    assert report.samples == 200


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"probe": 5}, TypeError, "`probe`"),
        ({"val_probe": "validation"}, TypeError, "`val_probe`"),
        ({"probe_size": 0}, ValueError, "`probe_size` must be at least 1"),
        ({"max_overhead": 0.0}, ValueError, "`max_overhead` must be a share of the training time, above 0"),
        ({"max_overhead": 5}, ValueError, "`max_overhead` must be a share of the training time, above 0 and at most 1"),
        ({"figures": "sometimes"}, ValueError, "`figures` must be one of"),
        ({"prefix": 3}, TypeError, "`prefix` must be a string"),
        ({"loggers": 3}, TypeError, "`loggers` takes"),
        ({"loggers": [3]}, TypeError, "`loggers` takes"),
        ({"unpack": 3}, TypeError, "`unpack` must be a function"),
        ({"measure": ["mode"]}, ValueError, "`measure` must be one of"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_at_once(arguments, error, text):
    with pytest.raises(error, match=text):
        Monitor(**{"probe": probe()} | arguments)


def test_without_a_probe_there_is_an_error_that_names_it():
    with pytest.raises(ValueError, match="`probe` must be a pair of tensors, a Dataset or a DataLoader, got None"):
        Monitor(None, strict=True).measure(made()[0], 0)


def test_lazy_parameters_are_waited_for():
    told = []
    watch = Monitor(probe(), **MODES)
    watch.inform = told.append
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.LazyLinear(24), nn.ReLU(), nn.Linear(24, 5))
        assert watch.measure(net, 0) is None
        net(probe()[0])
    assert len(told) == 1
    assert watch.measure(net, 1).samples == 200


# Where it sends ------------------------------------------------------------------------------------------------------


class Log:
    """A logger that takes scalars alone, and that may refuse them."""

    def __init__(self, refuses=False):
        self.lines, self.refuses = [], refuses

    def log_metrics(self, metrics, step=None):
        if self.refuses:
            raise OSError("disk full")
        self.lines.append((step, metrics))


def test_every_logger_gets_the_scalars_and_writers_the_rest(tmp_path):
    log = Log()
    with SummaryWriter(str(tmp_path / "given")) as writer:
        loggers = [log, writer, tmp_path / "folder"]
        watch = Monitor(probe(), loggers=loggers, prefix="mine", schedule=[2], detail="full", **MODES)
        loop(watch, steps=2)
        watch.close()
        writer.add_scalar("own", 1.0)
    assert [step for step, _ in log.lines] == [0, 2]
    assert log.lines[-1][1] == watch.scalars
    assert all(tag.startswith("mine/") for tag in watch.scalars)
    for name, more in (("given", {"own"}), ("folder", set())):
        found = events(tmp_path / name)
        assert set(found.Tags()["scalars"]) == set(watch.scalars) | more
        assert "mine/modes/order_index/1" in found.Tags()["histograms"]
        assert found.Tags()["images"] == []
        assert found.Tensors("mine/netdyn/about/text_summary")
        assert last_layout(tmp_path / name) == layout(["modes"], "mine/")


def test_what_is_switched_off_is_not_sent(tmp_path):
    watch = Monitor(probe(), loggers=tmp_path, histograms=False, layout=False, detail="full", **MODES)
    watch.measure(made()[0], 0)
    watch.close()
    tags = events(tmp_path).Tags()
    # Only what is to be looked at first.
    assert (tags["histograms"], tags["images"], tags["tensors"]) == ([], [], ["0_netdyn/verdict/text_summary"])
    assert set(tags["scalars"]) == set(watch.scalars)


@pytest.mark.parametrize("detail", ["summary", "layers", "full"])
def test_the_detail_says_what_is_sent_and_all_numbers_are_kept(detail):
    log = Log()
    watch = Monitor(probe(), loggers=[log], detail=detail, measure=["modes", "sample_basin"], figures="never")
    watch.measure(made()[0], 3)
    ((step, sent),) = log.lines
    own = {tag: value for tag, value in watch.scalars.items() if tag.startswith("netdyn/")}
    assert (step, sent) == (3, watch.report.scalars(detail) | own)
    assert watch.scalars == watch.report.scalars() | own


def test_the_table_of_tags_holds_what_is_sent(tmp_path):
    watch = Monitor(probe(), loggers=tmp_path, detail="summary", **MODES)
    watch.start()
    watch.close()
    (text,) = texts(events(tmp_path), "netdyn/about").values()
    named = {tag.name: f"| `{tag.name}` |" in text for tag in SCALARS}
    assert named == {tag.name: tag.detail == "summary" for tag in SCALARS}


def test_the_untrained_network_sends_no_radius_of_zero():
    log = Log()
    watch = Monitor(probe(), loggers=[log], measure=["sample_basin"], figures="never", prefix="mine")
    for step in (0, 1):
        assert watch.measure(made()[0], step).sample_basin.radius == 0
    ends = {f"mine/basin/sample/{end}" for end in ("radius", "low", "high")}
    assert [ends & set(line) for _, line in log.lines] == [set(), ends]
    assert {watch.scalars[tag] for tag in ends} == {0.0}


def test_figures_may_come_at_every_evaluation(tmp_path):
    watch = Monitor(probe(), loggers=tmp_path, figures="always", schedule=[1, 2], measure=["modes"])
    net, _ = loop(watch, steps=2)
    watch.close(net)
    assert [event.step for event in events(tmp_path).Images("modes/rpd")] == [0, 1, 2]


def test_without_loggers_the_numbers_are_the_monitors():
    watch = Monitor(probe(), **MODES)
    _, reports = loop(watch, steps=3)
    watch.close()
    assert watch.report is reports[3]
    own = {tag: value for tag, value in watch.scalars.items() if not tag.startswith("netdyn/")}
    assert own == reports[3].scalars()


def test_a_logger_that_refuses_is_named_once_and_the_others_get_theirs():
    log = Log()
    watch = Monitor(probe(), loggers=[Log(refuses=True), log], schedule=[1, 2], **MODES)
    with pytest.warns(UserWarning, match=r"^netdyn: Log refused the scalars: OSError: disk full\.$") as caught:
        loop(watch, steps=2)
    assert len(caught) == 1
    assert [step for step, _ in log.lines] == [0, 1, 2]
    with pytest.raises(OSError, match="disk full"):
        Monitor(probe(), loggers=Log(refuses=True), strict=True, **MODES).measure(made()[0], 0)


def test_notices_go_to_the_logger_netdyn(caplog):
    caplog.set_level(logging.INFO, logger="netdyn")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Monitor(probe()).measure(nn.LazyLinear(5), 0)
    assert [record.name for record in caplog.records] == ["netdyn"]


# What it survives ----------------------------------------------------------------------------------------------------

#: No module has this name: the sample basin fails, and nothing else.
FAILING = {"measure": ["modes", "sample_basin", "batchnorm"], "noise_at": ["nope"], "figures": "never"}


def test_a_measure_that_fails_is_warned_of_once_and_the_rest_comes():
    watch = Monitor(probe(), schedule=[1, 2], **FAILING)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, reports = loop(watch, steps=2)
    (warning,) = caught
    assert warning.category is DynamicsWarning
    assert str(warning.message).startswith("netdyn could not measure 'sample_basin'")
    assert str(warning.message).endswith(
        "Leave 'sample_basin' out of `measure`, or pass strict=True to have this raised."
    )
    for report in reports.values():
        assert report.sample_basin is None
        assert {"modes/opt_fraction/1", "batchnorm/gap", "probe/accuracy"} <= set(report.scalars())
    assert (watch.evaluations, watch.skipped) == (3, 0)


def test_strict_raises():
    with pytest.raises(ValueError, match="nope"):
        Monitor(probe(), strict=True, **FAILING).measure(made()[0], 0)


class Pair(nn.Module):
    """Its outputs are no logits."""

    def __init__(self):
        super().__init__()
        self.net, _ = made()

    def forward(self, x):
        return {"scores": self.net(x), "input": x}


class Small(nn.Module):
    """A network on a device without much memory."""

    def __init__(self, most):
        super().__init__()
        self.net, _ = made()
        self.most = most

    def forward(self, x):
        if len(x) > self.most:
            raise torch.OutOfMemoryError("no memory left")
        return self.net(x)


def test_where_memory_runs_out_later_evaluations_begin_with_what_has_fitted():
    watch, net = Monitor(probe(), **MODES), Small(70)
    text = "^netdyn: out of memory; from here on 50 samples per forward pass"
    with pytest.warns(DynamicsWarning, match=text) as caught:
        reports = [watch.measure(net, step) for step in range(2)]
    assert len(caught) == 1
    assert watch.config.batch_size == 50
    expected = diagnose(net, *probe(), batch_size=50, measure=["modes"]).scalars()
    assert [report.scalars() for report in reports] == [expected] * 2


def test_an_evaluation_that_fails_is_warned_of_once_and_counted():
    watch, net = Monitor(probe(), **MODES), Pair()
    with pytest.warns(UserWarning, match="measurement failed and was skipped") as caught:
        assert [watch.measure(net, step) for step in range(3)] == [None] * 3
    assert len(caught) == 1
    assert (watch.evaluations, watch.skipped, watch.report) == (3, 3, None)
    assert watch.scalars["netdyn/skipped"] == 3
    assert watch.history.steps == []
    with pytest.raises(TypeError, match="must be a tensor"):
        Monitor(probe(), strict=True, **MODES).measure(net, 0)
    own = Monitor(probe(), forward=lambda model, x: model(x)["scores"], **MODES)
    assert own.measure(net, 0).layers[0].name == "net.1"


def test_a_probe_that_cannot_be_read_is_reported_once():
    class Torn(torch.utils.data.Dataset):
        def __len__(self):
            return 30

        def __getitem__(self, i):
            raise OSError("no such file")

    watch = Monitor(Torn(), **MODES)
    with pytest.warns(UserWarning, match="no such file") as caught:
        assert [watch.measure(made()[0], step) for step in range(3)] == [None] * 3
    assert len(caught) == 1
    watch.close()


def test_warnings_of_a_measurement_come_once():
    x, target = probe()
    watch = Monitor((x[target < 3], target[target < 3]), schedule=[1], **MODES)
    with pytest.warns(DynamicsWarning, match="^The probe holds 3 of 5 classes") as caught:
        loop(watch, steps=1)
    assert len(caught) == 1


class Telling(nn.Module):
    """Warns of other layers each time, and of two at once."""

    def __init__(self):
        super().__init__()
        self.net, _ = made()
        self.calls = itertools.count()

    def forward(self, x):
        for _ in range(2):
            checks.warn(f"The layers {'abcdefghij'[: next(self.calls) % 10]} and others are odd.")
        return self.net(x)


def test_a_kind_of_warning_comes_once_though_its_words_change():
    watch = Monitor(probe(), measure=["sample_basin"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(3):
            watch.measure(Telling(), step)
            if step == 0:
                first = [str(warning.message) for warning in caught]
    # All that the first evaluation has to say, each text once, and nothing of this kind later.
    assert len(first) > 1
    assert len(set(first)) == len(first)
    assert [str(warning.message) for warning in caught] == first


def test_a_failure_comes_once_though_its_words_change():
    class Lost(nn.Module):
        layers = itertools.count(1)

        def forward(self, x):
            raise RuntimeError("lost " + ", ".join("abcdefgh"[: next(self.layers)]))

    watch = Monitor(probe(), **MODES)
    with pytest.warns(UserWarning, match="lost a") as caught:
        assert [watch.measure(Lost(), step) for step in range(4)] == [None] * 4
    assert len(caught) == 1


def test_another_failure_is_told_too():
    errors = [ValueError("first"), TypeError("second"), TypeError("third")]

    class Failing(nn.Module):
        def __init__(self, error):
            super().__init__()
            self.error = error

        def forward(self, x):
            raise self.error

    watch = Monitor(probe(), **MODES)
    with pytest.warns(UserWarning, match="first|second") as caught:
        assert [watch.measure(Failing(error), 0) for error in errors] == [None] * 3
    assert ["first" in str(each.message) for each in caught] == [True, False]


def test_a_run_that_begins_anew_says_everything_again():
    x, target = probe()
    watch = Monitor((x[target < 3], target[target < 3]), **MODES)
    for _ in range(2):
        with pytest.warns(DynamicsWarning, match="^The probe holds 3 of 5 classes"):
            watch.measure(made()[0], 0)
        watch.reset()


@pytest.mark.parametrize(
    ("measure", "named"),
    [(["modes"], "'modes'"), (["linear"], "'linear'"), (["linear", "modes"], "'modes' and 'linear'")],
)
def test_a_failure_of_the_layers_names_what_was_asked_for(measure, named):
    watch = Monitor(probe(), measure=measure, layers=["nope"])
    text = f"^netdyn could not measure {named}, .* Correct `layers`, or pass strict=True"
    with pytest.warns(DynamicsWarning, match=text):
        watch.measure(made()[0], 0)


def test_the_untrained_network_and_the_first_step_are_two_columns():
    """Lightning logs both at step 0."""
    watch = Monitor(probe(), **MODES)
    for step in (0, 0, 1):
        watch.measure(made(seed=step)[0], step)
    assert watch.history.steps == [0, 0, 1]
    assert set(watch.history.figures()) == {"modes/map", "modes/gradient_map"}


def test_the_network_and_every_generator_stay_as_they_were():
    net, _ = made()
    net[2].eval()
    before = copy.deepcopy(net.state_dict())
    flags = [module.training for module in net.modules()]
    state = torch.get_rng_state()
    Monitor(probe()).measure(net, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in net.modules()] == flags
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


# Going on ------------------------------------------------------------------------------------------------------------


def test_a_resumed_run_goes_on_where_it_was():
    whole, first, second = (Monitor(probe(), schedule=[3, 6, 9], **MODES) for _ in range(3))
    loop(whole)
    pair = made()
    loop(first, steps=7, net=pair)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    state = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    second.load_state_dict(state)
    # A number that was not measured is NaN, which equals nothing.
    assert repr(second.state_dict()) == repr(state)
    net, optimiser = pair
    steps = []
    for step in range(7, STEPS + 1):
        if second.due(step):
            steps.append(step)
            second.measure(net, step)
        step_of(net, optimiser)
    assert steps == [9]
    assert second.evaluations == whole.evaluations == 4
    assert second.history.steps == whole.history.steps == [0, 3, 6, 9]
    assert repr(second.history.rows) == repr(whole.history.rows)
    assert second.budget.spent > first.budget.spent > 0


def test_basins_are_compared_with_the_last_ones_also_in_a_resumed_run():
    basins = {"measure": ["sample_basin", "weight_basin"], "figures": "never", "seed": 3}
    whole, first, second = (Monitor(probe(), **basins) for _ in range(3))
    net, optimiser = made()
    for _ in range(12):
        step_of(net, optimiser)
    start = [watch.measure(net, 12) for watch in (whole, first)]
    assert not [tag for tag in start[0].scalars() if "change" in tag]
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    second.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    for _ in range(8):
        step_of(net, optimiser)
    later, resumed = whole.measure(net, 20), second.measure(net, 20)
    assert resumed.scalars() == later.scalars()
    sent = later.scalars()
    ratio = math.log(later.sample_basin.radius / start[0].sample_basin.radius)
    assert sent["basin/sample/change"] == pytest.approx(ratio)
    ratios = (later.weight_basin.radii / start[0].weight_basin.radii).log()
    assert sent["basin/weight/change"] == pytest.approx(float(ratios.quantile(0.5)), rel=1e-6)
    for space in ("sample", "weight"):
        low, middle, high = (sent[f"basin/{space}/{tag}"] for tag in ("change_low", "change", "change_high"))
        assert low < middle < high
    # In pairs the change is better known than the radius.
    width = sent["basin/sample/change_high"] - sent["basin/sample/change_low"]
    assert width < math.log(sent["basin/sample/high"] / sent["basin/sample/low"])
    assert "sample basin since the last evaluation: radius × " in str(later)
    assert "since the last evaluation" not in str(start[0])
    other = Monitor(probe(), **basins | {"seed": 4})
    other.load_state_dict(first.state_dict())
    assert other.measure(net, 20).sample_change is None


def test_a_monitor_can_begin_again():
    watch = Monitor(probe(), schedule=[1], **MODES)
    loop(watch, steps=1)
    watch.reset()
    assert (watch.evaluations, watch.history.steps, watch.scalars, watch.budget.spent) == (0, [], {}, 0)
    assert watch.due(0)


def test_part_of_a_network_may_be_measured():
    net, _ = made()
    whole = nn.ModuleDict({"body": net, "other": nn.Linear(2, 2)})
    report = Monitor(probe(), **MODES).measure(whole, 0, network=lambda own: own["body"])
    assert report.scalars() == diagnose(net, *probe(), measure=["modes"]).scalars()


# The end -------------------------------------------------------------------------------------------------------------


def test_closing_draws_the_last_report_at_its_own_step(tmp_path):
    watch = Monitor(probe(), loggers=tmp_path, schedule=[3], measure=["modes"])
    loop(watch, steps=5)
    watch.close()
    assert [event.step for event in events(tmp_path).Images("modes/rpd")] == [0, 3]


MAPPED = ("basin/curves", "wpa/characteristic_maps")


def test_the_last_figures_show_the_classes_of_a_network_that_was_just_measured(tmp_path):
    options = {"measure": ["sample_basin", "maps"], "schedule": [5]}
    late, just = (Monitor(probe(), loggers=tmp_path / name, **options) for name in ("late", "just"))
    net, _ = loop(late, steps=8)
    late.close(net, 8)
    # A report holds the numbers of one moment.
    assert late.report.sample_basin.per_class is None
    assert late.report.characteristic_maps is None
    late_images = {tag: [event.step for event in events(tmp_path / "late").Images(tag)] for tag in MAPPED}
    assert late_images == {"basin/curves": [5, 8], "wpa/characteristic_maps": [0, 8]}
    net, _ = loop(just, steps=5)
    just.close(net, 5)
    assert just.report.sample_basin.per_class.shape == (5,)
    expected = diagnose(net, *probe(), measure=["sample_basin", "maps"])
    assert just.report.scalars() == expected.scalars()
    assert torch.equal(just.report.characteristic_maps, expected.characteristic_maps)
    just_images = {tag: [event.step for event in events(tmp_path / "just").Images(tag)] for tag in MAPPED}
    assert just_images == {"basin/curves": [5], "wpa/characteristic_maps": [0, 5]}


def test_equal_radii_are_no_sign_of_an_equal_network():
    """A network that is wrong everywhere has the radius 0 before and after a step."""
    watch = Monitor(probe(), measure=["sample_basin", "maps"], schedule=[1])
    net, optimiser = made()
    with torch.no_grad():
        net[5].bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.0, 100.0]))
    for step in (0, 1):
        watch.measure(net, step)
    assert watch.report.sample_basin.radius == 0
    step_of(net, optimiser)
    watch.close(net)
    assert watch.report.sample_basin.radius == 0
    assert watch.report.characteristic_maps is None


def test_closing_draws_nothing_twice(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        watch = Monitor(probe(), loggers=writer, measure=["modes"])
        watch.measure(made()[0], 0)
        watch.close()
        watch.close()
    assert [event.step for event in events(tmp_path).Images("modes/rpd")] == [0]


@pytest.mark.parametrize(("first", "expected"), [(None, 1.0), (0.2, 1.0), (3.0, 3.0)])
def test_figures_are_expected_to_take_a_second_at_least(first, expected):
    """An untrained network has fewer than a trained one."""
    own = budget.Budget(0.05)
    own.drawing = first
    assert own.figures == expected


def test_the_last_figures_keep_to_the_budget_too(tmp_path, clock):
    told = []
    watch = Monitor(probe(), loggers=tmp_path, schedule=[1], max_overhead=0.5, measure=["modes", "maps"])
    watch.inform = told.append
    net, optimiser = made()
    slow = Slow(net)
    watch.measure(slow, 0)
    watch.budget.drawing = 5.0
    step_of(slow, optimiser)
    take(4.0)
    watch.close(slow, 1)
    assert told[1:-1] == [
        "netdyn left out the figures at the end of training to keep to max_overhead=0.5; `report.figures()` draws "
        "those of the last report."
    ]
    assert events(tmp_path).Tags()["images"] == []


def test_a_monitor_that_never_measured_can_be_closed():
    watch = Monitor(probe(), loggers=Log())
    watch.close(made()[0], 3)
    assert watch.report is None
    assert math.isfinite(watch.budget.overhead())


# What to look at first -----------------------------------------------------------------------------------------------


def texts(found, tag):
    return {event.step: event.tensor_proto.string_val[0].decode() for event in found.Tensors(f"{tag}/text_summary")}


def test_the_verdict_and_the_findings_stand_at_every_evaluation(run):
    found = texts(run.events, "0_netdyn/verdict")
    assert list(found) == [0, 4, 9]
    for step, report in run.reports.items():
        first, empty, *sentences = found[step].splitlines()
        assert (first, empty) == (f"**{markdown(str(report.verdict))}**", "")
        assert sentences == [f"- {markdown(sentence)}" for sentence in report.findings()]


@pytest.mark.parametrize(
    ("figures", "steps"), [("ends", [0, 1, 3, 7, 11]), ("always", list(range(12))), ("never", None)]
)
def test_the_overview_is_drawn_ever_more_rarely_and_at_the_end(figures, steps, tmp_path):
    watch = Monitor(probe(), loggers=tmp_path, figures=figures, schedule=list(range(1, 12)), measure=["modes"])
    net, _ = loop(watch, steps=11)
    watch.close(net)
    found = events(tmp_path)
    drawn = "0_netdyn/overview" in found.Tags()["images"]
    assert ([event.step for event in found.Images("0_netdyn/overview")] if drawn else None) == steps


def test_the_last_overview_is_drawn_once(tmp_path):
    watch = Monitor(probe(), loggers=tmp_path, schedule=[1, 2, 3], measure=["modes"])
    net, _ = loop(watch, steps=3)
    watch.close(net)
    assert [event.step for event in events(tmp_path).Images("0_netdyn/overview")] == [0, 1, 3]


def test_the_run_ends_with_its_verdict_and_where_to_look(tmp_path):
    folder, told = tmp_path / "my run", []
    watch = Monitor(probe(), loggers=[folder, Log()], schedule=[2], **MODES)
    watch.inform = told.append
    net, reports = loop(watch, steps=2)
    watch.close(net)
    assert watch.report_path == folder / "netdyn_report.html"
    where = f"{watch.report_path}, tensorboard --logdir '{folder}'"
    assert told[-1] == f"netdyn's verdict at step 2: {reports[2].verdict} Look at: {where}"


def test_a_run_that_measured_nothing_ends_without_a_verdict():
    told = []
    watch = Monitor(probe(), **MODES)
    watch.inform = told.append
    watch.close()
    assert told == []


def test_a_logger_that_cannot_be_closed_costs_a_warning():
    watch = Monitor(probe(), loggers=[Log()], **MODES)
    watch.measure(made()[0], 0)

    def refuse():
        raise OSError("disk full")

    watch.destinations[0].close = refuse
    with pytest.warns(UserWarning, match="Log refused the end of the run: OSError: disk full"):
        watch.close()


# A report by itself --------------------------------------------------------------------------------------------------


def test_a_report_is_sent_to_a_writer_of_ones_own(tmp_path):
    report = diagnose(made()[0], *probe(), weight_rays=2, measure=["modes", "sample_basin"])
    with SummaryWriter(str(tmp_path)) as writer:
        report.log(writer, 7, prefix="mine")
        writer.add_scalar("own", 1.0)  # it is still open
    found = events(tmp_path)
    sent = {tag: found.Scalars(tag) for tag in found.Tags()["scalars"] if tag != "own"}
    assert {tag: [event.step for event in values] for tag, values in sent.items()} == {
        f"mine/{tag}": [7] for tag in report.scalars("layers")
    }
    assert set(found.Tags()["histograms"]) == {f"mine/{tag}" for tag in report.histograms()}
    assert set(found.Tags()["images"]) == {f"mine/{tag}" for tag in report.figures()}
    assert list(texts(found, "mine/0_netdyn/verdict")) == [7]


def test_a_report_is_sent_to_a_folder_or_a_logger_in_any_detail(tmp_path):
    report, log = diagnose(made()[0], *probe(), measure=["modes"]), Log()
    report.log(tmp_path, 3, detail="summary")
    report.log(log, 3, detail="full")
    assert set(events(tmp_path).Tags()["scalars"]) == set(report.scalars("summary"))
    assert log.lines == [(3, report.scalars())]


def test_what_is_no_logger_gets_no_report():
    report = diagnose(made()[0], *probe(), measure=["modes"])
    text = (
        "`logger` takes Lightning loggers, TensorBoard SummaryWriters, W&B runs and folders for event files, got int."
    )
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        report.log(3, 0)
