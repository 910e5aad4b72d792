"""Every row that is read is its sample's own; what is not, and what depends on other samples, is named."""

import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from counting import PASSES, Counting
from netdyn import Monitor, diagnose
from netdyn._utils.checks import DynamicsWarning
from netdyn.functional import linear_substitution_map, linear_tail, local_fields
from netdyn.tracing.rows import Rows, compare, other_parts
from networks import CLASSES, FEATURES, fill, labels, samples

WIDTH, EXPERTS = 12, 3


class SortedExperts(nn.Module):
    """Every sample goes to one expert, and the batch is sorted by expert."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(WIDTH, EXPERTS)
        self.inner = nn.Parameter(torch.empty(EXPERTS, WIDTH, 10))
        self.outer = nn.Parameter(torch.empty(EXPERTS, 10, WIDTH))

    def forward(self, x):
        chosen = self.gate(x).argmax(1)
        order = chosen.argsort(stable=True)
        hidden = F.gelu(torch.einsum("nd,ndh->nh", x[order], self.inner[chosen[order]]))
        back = torch.einsum("nh,nhd->nd", hidden, self.outer[chosen[order]])
        return x + torch.zeros_like(back).index_copy(0, order, back)


class ListedExperts(nn.Module):
    """Every expert runs on its own samples alone."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(WIDTH, EXPERTS)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 9), nn.Tanh(), nn.Linear(9, WIDTH)) for _ in range(3)
        )

    def forward(self, x):
        chosen, out = self.gate(x).argmax(1), torch.zeros_like(x)
        for k, expert in enumerate(self.experts):
            rows = (chosen == k).nonzero()[:, 0]
            if len(rows):
                out = out.index_add(0, rows, expert(x[rows]))
        return x + out


class SortedTokens(nn.Module):
    """The tokens of all samples are sorted together."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        tokens = x.reshape(-1, 4)
        order = tokens[:, 0].argsort()
        back = torch.tanh(self.fc(tokens[order]))[order.argsort()]
        return x + back.reshape(len(x), -1)[:, :WIDTH]


class Attends(nn.Module):
    """Samples attend to one another."""

    def forward(self, h):
        return torch.relu(h + 3 * (h @ h.T).softmax(1) @ h)


class Centred(nn.Module):
    def forward(self, h):
        return torch.relu(h - h.mean(dim=0))


class OwnStatistics(nn.Module):
    """Batch normalisation without running statistics."""

    def forward(self, h):
        return F.batch_norm(h, None, None, training=True)


def around(part, seed):
    """A network with a part in its middle; its first layer is read in any case."""
    return fill(nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.ReLU(), part, nn.Linear(WIDTH, CLASSES)), seed).eval()


def quietly(function, *given, **options):
    """A result, and the texts of the warnings that it brought."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = function(*given, **options)
    return found, [str(entry.message) for entry in caught if issubclass(entry.category, DynamicsWarning)]


@pytest.mark.parametrize("seed", range(12))
def test_rows_that_are_sorted_by_expert_are_refused_unless_all_samples_have_one_expert(seed):
    network, x = around(SortedExperts(), seed), samples(96, seed)
    with torch.no_grad():
        hidden = torch.relu(network[0](x))
        chosen = network[2].gate(hidden).argmax(1)
        true = torch.einsum("nd,ndh->nh", hidden, network[2].inner[chosen])
    fields, said = quietly(local_fields, network, x)
    assert "0" in fields
    if len(fields) == 2:
        torch.testing.assert_close(fields["2"], true)
    assert (len(fields) == 1) == (len(set(chosen.tolist())) > 1)
    assert said == [] if len(fields) == 2 else ["['2'] mix or sort the samples" in text for text in said] == [True]


@pytest.mark.parametrize(("part", "name"), [(ListedExperts, "2.experts."), (SortedTokens, "2.fc")])
def test_rows_of_some_samples_or_of_sorted_tokens_are_refused_and_named(part, name):
    network, x = around(part(), 1), samples(256)
    fields, said = quietly(local_fields, network, x)
    assert {key: len(field) for key, field in fields.items()} == {"0": 256}
    assert len(said) == 1
    assert f"'{name}" in said[0]
    report, said = quietly(diagnose, network, x, labels(256), measure=["modes", "linear"], progress=False)
    assert [layer.name for layer in report.layers] == ["0"]
    assert [f"'{name}" in text for text in said] == [True]
    for function, given in ((linear_substitution_map, ()), (linear_tail, (labels(256),))):
        found, said = quietly(function, network, x, *given)
        assert list(found) == ["0"]
        assert any(f"'{name}" in text for text in said)


def test_every_expert_that_runs_is_named():
    network, x = around(ListedExperts(), 1), samples(256)
    with torch.no_grad():
        used = network[2].gate(torch.relu(network[0](x))).argmax(1).unique().tolist()
    assert len(used) > 1
    _, (said,) = quietly(local_fields, network, x)
    assert [k for k in range(EXPERTS) if f"'2.experts.{k}.0'" in said] == used


@pytest.mark.parametrize("part", [Attends, Centred, OwnStatistics])
@pytest.mark.parametrize("function", ["local_fields", "diagnose"])
def test_a_network_whose_outputs_depend_on_the_other_samples_brings_a_warning(part, function):
    network, x = around(nn.Sequential(part(), nn.ReLU()), 0), samples(128)
    if function == "diagnose":
        found, said = quietly(diagnose, network, x, labels(128), measure=["modes"], progress=False)
        names = [layer.name for layer in found.layers]
    else:
        found, said = quietly(local_fields, network, x)
        names = list(found)
    assert "0" in names
    assert any("its outputs depend on the other samples that run with one" in text for text in said)


class Dropping(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.3)


class Counts(nn.Module):
    """Its output depends on how often it has run."""

    def __init__(self):
        super().__init__()
        self.runs = 0

    def forward(self, x):
        self.runs += 1
        return x * (1 + 0.01 * (self.runs % 3))


class Keeps(nn.Module):
    """Its output depends on the last batch."""

    def __init__(self):
        super().__init__()
        self.last = 0.0

    def forward(self, x):
        before, self.last = self.last, x.mean(dim=0)
        return x + before


@pytest.mark.parametrize("part", [Dropping, Counts, Keeps])
def test_a_network_that_is_random_or_keeps_a_state_is_not_said_to_mix_its_samples(part):
    network = around(nn.Sequential(part(), nn.ReLU()), 0)
    fields, said = quietly(local_fields, network, samples(300))
    assert list(fields) == ["0", "2.0"]
    assert said == []


def test_equal_samples_and_outputs_that_all_agree_are_no_mixture():
    network, x = around(nn.ReLU(), 0), samples(1).repeat(40, 1)
    fields, said = quietly(local_fields, network, x)
    assert all(len(field) == 40 for field in fields.values())
    assert said == []


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_a_few_samples_can_be_read(number):
    fields, said = quietly(local_fields, around(nn.ReLU(), 0), samples(number))
    assert [len(field) for field in fields.values()] == [number, number]
    assert said == []


# When the probe is run once more ------------------------------------------------------------------------------------


class Later(nn.Module):
    """Sorts batches of some size once it is told so."""

    def __init__(self, least=0, width=WIDTH):
        super().__init__()
        self.least, self.fc = least, nn.Linear(width, width)
        self.register_buffer("sorts", torch.tensor(False))

    def forward(self, h):
        order = torch.arange(len(h))
        if self.sorts and len(h) >= self.least:
            order = h[:, 0].argsort()
        return torch.relu(self.fc(h[order]))[order.argsort()]


@pytest.mark.parametrize("least", [0, 10, 20], ids=["all batches", "of a few samples too", "only large ones"])
def test_a_monitor_runs_the_probe_once_more_at_first_and_when_rows_change(least):
    network = Counting(*around(Later(least), 0)).eval()
    x, y = samples(256), labels(256)
    monitor = Monitor((x, y), measure=["modes"], figures="never")
    passed, names = [], []
    for step in range(5):
        network[2].sorts.fill_(step > 1)
        PASSES.clear()
        report, said = quietly(monitor.measure, network, step)
        # Without the few samples of surveys, maps and comparisons.
        passed.append(sum(size for size in PASSES if size > 100) / 256)
        names.append([layer.name for layer in report.layers])
        assert bool(said) == (step == 2)
    # Reading, and the probe in another order; later a few samples, which show that rows have changed. Then both again.
    assert passed == [2, 1, 3, 1, 1]
    assert [len(layers) for layers in names] == [2, 2, 1, 1, 1]
    assert all(layers[0] == "0" for layers in names)


# Rows and their differences -----------------------------------------------------------------------------------------


def rows_of(table, order, key=("call", "a", 0)):
    rows = Rows(torch.arange(len(table)))
    for part in torch.tensor_split(order, 3):
        rows.begin(part)
        rows.add(key, table[part])
    return rows


@pytest.mark.parametrize("width", [1, 5, 200])
@pytest.mark.parametrize(
    ("change", "refused", "moved"),
    [
        (lambda table: table * (1 + 1e-6 * samples(60, 3, table.shape[1:])), False, False),
        (lambda table: table + 0.05 * table.std(), False, True),
        (lambda table: table.flip(0), True, True),
        (lambda table: torch.cat([table[[1, 0]], table[2:]]), True, True),
        (lambda table: torch.cat([table[:50], table[:10]]), True, True),
    ],
    ids=["rounding", "moved a little", "flipped", "two exchanged", "repeated"],
)
def test_what_differs_between_two_runs(width, change, refused, moved):
    table = samples(60, shape=(width,)) + 3
    order = torch.randperm(60, generator=torch.Generator().manual_seed(2))
    verdict = compare(rows_of(table, torch.arange(60)), rows_of(change(table), order))
    assert bool(verdict.refused) == refused
    assert bool(verdict.moved) == moved


def test_rows_of_other_lengths_cannot_be_compared():
    table = samples(60, shape=(20,))
    assert not compare(rows_of(table, torch.arange(60)), rows_of(table.flip(0)[:, :15], torch.arange(60))).moved


def test_bfloat16_may_round_more():
    table = samples(60, shape=(20,))
    coarse = (table * (1 + 0.01 * samples(60, 3, (20,)))).bfloat16()
    assert not compare(rows_of(table.bfloat16(), torch.arange(60)), rows_of(coarse, torch.arange(60))).moved
    assert compare(rows_of(table, torch.arange(60)), rows_of(coarse.float(), torch.arange(60))).moved


@pytest.mark.parametrize(("number", "batch_size"), [(1, None), (2, None), (3, 1), (64, None), (1024, None), (1000, 7)])
def test_another_order_holds_every_sample_once_and_none_alone(number, batch_size):
    parts = other_parts(number, batch_size)
    assert torch.cat(parts).sort().values.tolist() == list(range(number))
    assert min(map(len, parts)) >= min(number, 2)
    assert max(map(len, parts)) <= max(3, min(256, (batch_size or number) / 2 + 1))


def test_the_error_where_nothing_is_left_names_the_layers():
    network = fill(nn.Sequential(Later(width=FEATURES), nn.Linear(FEATURES, CLASSES))).eval()
    network[0].sorts.fill_(True)
    with (
        pytest.warns(DynamicsWarning, match=re.escape("mix or sort the samples of a batch")),
        pytest.raises(ValueError, match="The samples cannot be told apart"),
    ):
        diagnose(network, samples(), labels(), measure=["modes"], progress=False)
