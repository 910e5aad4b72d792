"""The labelled trainings: their statistics against slow ones and scipy's, the committed tables, and a quick run."""

import csv
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

ROOT = Path(__file__).parents[2]
FOLDER, DOCS = ROOT / "examples/evidence", ROOT / "docs"
MODULES = ("rates", "records", "tables", "truth", "settings", "architectures", "suspects", "figures", "images", "data")


@pytest.fixture
def room(monkeypatch):
    """One of the modules by its name, as the script beside it would import it."""
    monkeypatch.syspath_prepend(FOLDER)
    kept = list(sys.path)
    yield importlib.import_module
    sys.path[:] = kept
    for name in MODULES:
        sys.modules.pop(name, None)


def numbers(size, seed, ties=False):
    drawn = np.random.default_rng(seed).normal(size=size)
    return np.round(drawn) if ties else drawn


@pytest.mark.parametrize(("hits", "of"), [(0, 60), (1, 1), (3, 7), (59, 60), (500, 1000)])
def test_wilsons_interval_is_scipys(room, hits, of):
    expected = scipy.stats.binomtest(hits, of).proportion_ci(method="wilson")
    assert room("rates").wilson(hits, of) == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.mark.parametrize("ties", [False, True])
def test_kendalls_tau_is_scipys(room, ties):
    x, y = numbers(40, 0, ties), numbers(40, 1, ties)
    y += x
    assert room("rates").kendall(x, y) == pytest.approx(scipy.stats.kendalltau(x, y).statistic)


def slow_tau(x, y, strata):
    """Concordant minus discordant pairs of the same stratum, over the root of the untied pairs of both."""
    both = first = second = 0
    for i in range(len(x)):
        for j in range(i):
            if strata[i] == strata[j]:
                a, b = np.sign(x[i] - x[j]), np.sign(y[i] - y[j])
                both, first, second = both + a * b, first + a * a, second + b * b
    return both / np.sqrt(first * second)


def test_tau_within_strata_counts_pairs_of_equal_data(room):
    strata = [k % 5 for k in range(40)]
    shift = 10.0 * np.array(strata)
    x, y = numbers(40, 2, True) + shift, numbers(40, 3, True) + shift
    found = room("rates").kendall(x, y, strata)
    assert found == pytest.approx(slow_tau(x, y, strata))
    # What the data make alike is gone.
    assert room("rates").kendall(x, y) > 0.5 > abs(found)


@pytest.mark.parametrize("within", [False, True])
def test_the_bootstrap_takes_whole_strata(room, within):
    """Each of 60 repeats equals τ of the drawn strata written out, copies under a name of their own."""
    rates = room("rates")
    strata = np.repeat(np.arange(6), 5)
    x, y = numbers(30, 4), numbers(30, 5)
    times = np.random.default_rng(7).multinomial(6, np.full(6, 1 / 6), size=60)
    expected = []
    for drawn in times:
        parts = [(np.flatnonzero(strata == s), copy) for s in range(6) for copy in range(drawn[s])]
        rows = np.concatenate([own for own, _ in parts])
        names = [f"{strata[k]} {copy}" for own, copy in parts for k in own]
        expected.append(slow_tau(x[rows], y[rows], names if within else ["all"] * len(rows)))
    found = rates.interval(x, y, list(strata), within, repeats=60, seed=7)
    assert found == pytest.approx(tuple(np.quantile(expected, [0.025, 0.975])))


def test_the_interval_covers_the_true_tau(room):
    """Normal pairs with correlation .5 have τ = 2/π·arcsin(.5) = 1/3. Of 200 intervals, standard error 1.5 %."""
    rates, draw, hits = room("rates"), np.random.default_rng(0), 0
    for _ in range(200):
        x = draw.normal(size=40)
        y = 0.5 * x + np.sqrt(0.75) * draw.normal(size=40)
        low, high = rates.interval(x, y, list(range(40)), False, repeats=100)
        hits += low <= 1 / 3 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_areas_and_thresholds(room):
    rates, low, high = room("rates"), numbers(30, 6, True), numbers(20, 7, True) + 1
    pairs = [(h > a) + 0.5 * (h == a) for a in low for h in high]
    assert rates.area(low, high) == pytest.approx(np.mean(pairs))
    best, right = rates.best_threshold(low, high)
    shares = [(np.mean(low < cut) + np.mean(high > cut)) / 2 for cut in np.arange(-4.75, 6, 0.5)]
    assert right == pytest.approx(max(shares))
    assert (np.mean(low < best) + np.mean(high > best)) / 2 == pytest.approx(right)
    assert rates.balanced_accuracy(["a"] * 9 + ["b"], ["a"] * 10) == 0.5


def test_both_halves_hold_every_construction_and_share_no_data(room):
    made = room("settings").settings(mnist=True)
    halves = {half: [s for s in made if s.half == half] for half in "AB"}
    assert all(s.half == ("A" if s.seed % 2 == 0 else "B") for s in made)
    kinds = {half: {(s.kind, s.variant, s.data) for s in own} for half, own in halves.items()}
    assert kinds["A"] == kinds["B"]
    strata = [{(s.data, s.samples, s.noise, s.seed) for s in own if s.kind == "stratum"} for own in halves.values()]
    assert not strata[0] & strata[1]
    assert len(strata[0] | strata[1]) >= 20
    assert len({s.name for s in made}) == len(made) >= 240


def test_probes_and_test_data_share_no_image(room):
    images, settings = room("images"), room("settings")
    for setting in settings.settings(mnist=False, quick=True)[:6]:
        data = images.split(setting, None)
        parts = [data.train[0], data.val[0], data.val_again[0], data.test[0]]
        assert len(torch.cat(parts)) == 1797
        again = images.split(setting, None)
        assert all(torch.equal(a, b[0]) for a, b in zip(parts, (again.train, again.val), strict=False))


def test_the_share_of_wrong_labels_is_exact(room):
    images, settings = room("images"), room("settings")
    setting = settings.Setting("stratum", "600/0.5", "digits", 600, 0.5, 0, 10)
    clean = settings.Setting("stratum", "600/0.0", "digits", 600, 0.0, 0, 10)
    wrong = images.split(setting, None).train[1] != images.split(clean, None).train[1]
    assert int(wrong.sum()) == 300


def test_the_top_eigenvalue_and_the_noise_scale_of_a_linear_network(room):
    suspects = room("suspects")
    net = torch.nn.Linear(3, 2, bias=False)
    x = torch.randn(128, 3, generator=torch.Generator().manual_seed(0))
    y = torch.arange(128) % 2

    def loss(weight):
        return torch.nn.functional.cross_entropy(x @ weight.reshape(2, 3).T, y)

    hessian = torch.autograd.functional.hessian(loss, net.weight.detach().flatten())
    expected = float(torch.linalg.eigvalsh(hessian)[-1])
    assert suspects.top_eigenvalue(net, x, y) == pytest.approx(expected, rel=0.02)
    # Gradients of single samples: the trace of their covariance over the squared mean, up to the estimate's noise.
    singles = torch.stack([suspects._gradient(net, x[k : k + 1], y[k : k + 1])[0].flatten() for k in range(128)])
    scale = float(singles.var(dim=0).sum() / singles.mean(dim=0).square().sum())
    assert suspects.noise_scale(net, x, y) == pytest.approx(scale, rel=0.5)


# The committed results -----------------------------------------------------------------------------------------------


def test_the_page_shows_what_the_committed_numbers_give(room):
    tables, records = room("tables"), room("records")
    page = (DOCS / "evidence.md").read_text(encoding="utf-8")
    analysis = tables.Analysis(records.read(DOCS / "evidence"))
    for name in ("made", "truths", "thresholds", "confusion", "alarms", "alone", "twice", "summary"):
        table = getattr(analysis, name)()
        assert f"<!-- table {name} -->\n\n{table}\n\n<!-- end -->" in page, name
    told = json.loads((DOCS / "evidence/numbers.json").read_text(encoding="utf-8"))
    assert told["balanced_accuracy"] == pytest.approx(analysis.numbers["balanced_accuracy"])


def test_the_published_rates_meet_what_is_promised():
    told = json.loads((DOCS / "evidence/numbers.json").read_text(encoding="utf-8"))
    assert told["balanced_accuracy"] >= 0.85
    assert told["false_alarms"] <= 0.03 * told["healthy"]
    assert min(told["same_A"], told["same_B"]) >= 0.95


def test_the_readme_quotes_the_committed_numbers():
    told = json.loads((DOCS / "evidence/numbers.json").read_text(encoding="utf-8"))
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    share = f"{told['balanced_accuracy']:.3f}".removeprefix("0")
    assert f"balanced accuracy {share} over 8 states on {told['judged']} labelled trainings" in text
    assert f"no false alarm on {told['healthy']} healthy ones" in text
    assert told["false_alarms"] == 0


def test_every_setting_has_its_row_in_the_committed_table(room):
    with (DOCS / "evidence/trainings.csv").open(encoding="utf-8") as file:
        rows = {row["training"]: row for row in csv.DictReader(file)}
    made = room("settings").settings(mnist=True)
    assert set(rows) == {s.name for s in made}
    assert all(rows[s.name]["half"] == s.half for s in made)


@pytest.mark.slow
def test_a_quick_run_goes_through_and_goes_on_where_it_stopped(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "MNIST_DIR"} | {"OMP_NUM_THREADS": "1"}

    def run():
        arguments = ["--quick", "--out", str(tmp_path / "out"), "--progress", str(tmp_path / "kept")]
        command = [sys.executable, str(FOLDER / "evidence.py"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=True).stdout

    first = run()
    kept = sorted((tmp_path / "kept").glob("*.json"))
    assert f"{len(kept)} trainings, {len(kept)} of them to be made" in first
    assert (tmp_path / "out/confusion.png").read_bytes()[:4] == b"\x89PNG"
    tables = (tmp_path / "out/tables.md").read_text(encoding="utf-8")
    assert "Balanced accuracy" in tables
    before = (tmp_path / "out/trainings.csv").read_text(encoding="utf-8")
    kept[0].unlink()
    assert f"{len(kept)} trainings, 1 of them to be made" in run()
    # The training that was made again is the same but for its time.
    drop = before.splitlines()[0].split(",").index("seconds")
    parts = [text.splitlines() for text in (before, (tmp_path / "out/trainings.csv").read_text(encoding="utf-8"))]
    cut = [[[cell for k, cell in enumerate(line.split(",")) if k != drop] for line in own] for own in parts]
    assert cut[0] == cut[1]
