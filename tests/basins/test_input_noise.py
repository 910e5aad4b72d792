"""Noise on what modules put out and on named inputs: seeds, shapes, runs, and that nothing stays behind."""

import math
import re

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from netdyn import SampleBasin
from netdyn._utils.random import digests
from netdyn._utils.trees import samples_first
from netdyn.basins.input_noise import Noise, _site, changed_outputs
from netdyn.functional import sample_basin


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Reader(nn.Module):
    """Embeds token ids; the mean over the sentence is read by a linear layer."""

    def __init__(self, end=lambda h: h):
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.end = end
        self.head = nn.Linear(8, 2, bias=False)
        self.embedding.weight = nn.Parameter(gaussian(20, 8, seed=1))
        self.head.weight = nn.Parameter(gaussian(2, 8, seed=2))

    def forward(self, ids):
        return self.head(self.end(self.embedding(ids)).mean(dim=1))


IDS = torch.randint(20, (400, 5), generator=torch.Generator().manual_seed(3))


def reading(network=None):
    network = network or Reader()
    with torch.no_grad():
        return network, IDS, network(IDS).argmax(dim=1)


def test_noise_on_an_embedding_is_the_linear_oracles():
    network, ids, target = reading()
    basin = sample_basin(network, ids, target, noise_at=["embedding"], rays=8)
    row = network.head.weight[1] - network.head.weight[0]
    # Noise of level sigma on each of five vectors moves their mean by sigma / sqrt(5) a component.
    margin = (network.embedding(ids).mean(dim=1) @ row).abs() / row.norm() * math.sqrt(5)
    # n = 400 samples x 8 rays: a share of 0.75 has the standard error 0.0077 or less; the bound is 4 of them.
    assert abs(Normal(0.0, 1.0).cdf(margin / basin.radius).mean().item() - 0.75) < 0.031


def test_noise_on_an_embedding_is_that_on_its_output_handed_in():
    network, ids, target = reading()
    with torch.no_grad():
        outputs = network.embedding(ids)
    whole = nn.Sequential(nn.Identity(), Mean(network.head))
    named = sample_basin(whole, outputs, target, noise_at=["0"], per_ray=True)
    again = sample_basin(whole, outputs, target, noise_at=["0"], per_ray=True, batch_size=37)
    assert torch.equal(named.radii, again.radii)
    # The same distribution: n = 400 samples on 1 ray, relative standard error 0.1.
    assert named.radius == pytest.approx(sample_basin(whole, outputs, target).radius, rel=0.4)


class Mean(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, x):
        return self.head(x.mean(dim=1))


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 7, 150])
def test_neither_batches_nor_order_change_it(batch_size):
    network, ids, target = reading()
    options = {"noise_at": ["embedding"], "rays": 2, "per_ray": True}
    expected = sample_basin(network, ids, target, **options)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(4))
    found = sample_basin(network, ids[order], target[order], **options, batch_size=batch_size)
    assert (found.radii != expected.radii[:, order]).double().mean() < 0.01
    assert found.radius == pytest.approx(expected.radius, rel=0.01)


def test_copies_of_a_sample_have_noise_of_their_own_and_another_seed_has_other():
    network, ids, target = reading()
    options = {"noise_at": ["embedding"], "rays": 9, "per_ray": True}
    first = torch.cat([torch.tensor([0, 1, 0]), torch.arange(100, 200)])
    twice = sample_basin(network, ids[first], target[first], **options)
    once = sample_basin(network, ids[first[1:]], target[first[1:]], **options)
    assert not torch.equal(twice.radii[:, 0], twice.radii[:, 2])
    # The first copy has the noise of a sample that comes once.
    assert torch.equal(twice.radii[:, [1, 0, *range(3, 103)]], once.radii)
    other = sample_basin(network, ids[first], target[first], **options, seed=1)
    assert not torch.equal(twice.radii, other.radii)


def drawn_outputs(network, inputs, names, rows=6, sigma=1.0):
    """The outputs of the named modules without and with noise, and the noise drawn for them."""
    cut = samples_first(inputs)
    noise = Noise.at(network, inputs, cut, names, 0)
    met = {"clean": {}, "noisy": {}}

    def keep(kind):
        def note(name, run, tensor):
            met[kind][name, run] = tensor.detach().clone()
            return tensor

        return note

    with torch.no_grad():
        with changed_outputs(network, set(names), keep("clean")):
            network(inputs)
        rows = noise.draw(inputs, digests(inputs, cut), torch.zeros(400, dtype=torch.int64))
        level = torch.full((400,), sigma)

        def call(inputs):
            with changed_outputs(network, set(names), keep("noisy")):
                return network(inputs)

        noise.outputs(network, inputs, rows, level, call)
    return met["clean"], met["noisy"], noise, rows


@pytest.mark.parametrize(
    "end",
    [lambda h: h, lambda h: (torch.arange(3), h, h.clone()), lambda h: {"ids": torch.arange(3), "h": h}],
    ids=["tensor", "tuple", "mapping"],
)
def test_first_floating_tensor_of_an_output_is_moved_by_the_noise(end):
    class Wrapped(nn.Module):
        def forward(self, h):
            return end(h)

    class Picking(Reader):
        def forward(self, ids):
            out = self.wrapped(self.embedding(ids))
            h = out if isinstance(out, torch.Tensor) else out["h"] if isinstance(out, dict) else out[1]
            return self.head(h.mean(dim=1))

    network = Picking()
    network.wrapped = Wrapped()
    _, _, noise, rows = drawn_outputs(network, IDS, ["wrapped"])
    clean, noisy, *_ = drawn_outputs(network, IDS, ["wrapped"])
    assert noise.sites[0].shape == (5, 8)
    torch.testing.assert_close(noisy["wrapped", 0], clean["wrapped", 0] + rows[1])


def test_a_module_that_runs_twice_is_disturbed_twice_and_otherwise():
    class Twice(Reader):
        def forward(self, ids):
            return self.head((self.embedding(ids) + self.embedding(ids.flip(1))).mean(dim=1))

    clean, noisy, noise, rows = drawn_outputs(Twice(), IDS, ["embedding"])
    assert [site.run for site in noise.sites] == [0, 1]
    for run in (0, 1):
        torch.testing.assert_close(noisy["embedding", run], clean["embedding", run] + rows[1 + run])
    assert not torch.equal(rows[1], rows[2])


def test_outputs_with_the_sequence_first_are_moved_sample_by_sample():
    class SequenceFirst(Reader):
        def forward(self, ids):
            return self.head(self.embedding(ids.t()).mean(dim=0))

    clean, noisy, noise, rows = drawn_outputs(SequenceFirst(), IDS, ["embedding"])
    assert noise.sites[0].dim == 1
    torch.testing.assert_close(noisy["embedding", 0], clean["embedding", 0] + rows[1].transpose(0, 1))
    network, ids, target = reading(SequenceFirst())
    same, plain = (
        sample_basin(each, ids, target, noise_at=["embedding"], per_ray=True) for each in (network, Reader())
    )
    assert torch.equal(same.radii, plain.radii)


def test_an_output_that_holds_tokens_of_all_samples_in_a_row_is_refused():
    class Flat(Reader):
        def forward(self, ids):
            return self.head(self.embedding(ids.flatten()).reshape(len(ids), 5, 8).mean(dim=1))

    text = (
        "`noise_at` names 'embedding', whose output has shape [10, 8] for 2 samples and [15, 8] for 3: one dimension "
        "must be the number of samples, and the others stay. Name another module."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        sample_basin(*reading(Flat()), noise_at=["embedding"])


@pytest.mark.parametrize(
    ("names", "error", "text"),
    [
        (
            ["embeding"],
            ValueError,
            "`noise_at` names 'embeding', which is no module or input. The nearest are 'embedding'",
        ),
        ([], ValueError, "`noise_at` must name at least one module or input, got []."),
        ("embedding", TypeError, "`noise_at` must be a list of names of modules or inputs, got 'embedding'."),
        (["unused"], ValueError, "`noise_at` names 'unused', which put out no floating tensor when the model ran."),
    ],
)
def test_names_that_do_not_fit_are_refused(names, error, text):
    network = Reader()
    network.unused = nn.Linear(2, 2)
    with pytest.raises(error, match=f"^{re.escape(text)}"):
        sample_basin(*reading(network), noise_at=names)


def test_for_whole_numbers_alone_noise_falls_on_the_embedding():
    found, expected = sample_basin(*reading()), sample_basin(*reading(), noise_at=["embedding"])
    assert (found.radius, found.interval) == (expected.radius, expected.interval)


def chosen(network, inputs):
    """The outputs that noise falls on if none is named, without running a search."""
    try:
        return [site[:3] for site in Noise.at(network, inputs, samples_first(inputs), None, 0).sites]
    finally:
        assert not any(module._forward_hooks for module in network.modules())


class Placed(nn.Module):
    """Embeds places, which are those of all samples, and then ids."""

    def __init__(self, kind=nn.Embedding):
        super().__init__()
        self.places, self.ids = nn.Embedding(5, 8), kind(20, 8)
        self.pair, self.head = nn.Bilinear(8, 8, 8), nn.Linear(8, 2)

    def forward(self, ids):
        return self.head(self.pair(self.ids(ids), self.places(torch.arange(5)).expand(len(ids), 5, 8)).mean(dim=1))


class Parametrised(nn.Embedding):
    """An embedding with a module inside of it."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.inner = nn.Identity()


@pytest.mark.parametrize("kind", [nn.Embedding, Parametrised])
def test_of_several_embeddings_the_first_that_depends_on_the_samples_is_disturbed(kind):
    assert chosen(Placed(kind), IDS) == [("ids", 0, 0)]
    assert chosen(nn.Sequential(Placed(kind)), IDS) == [("0.ids", 0, 0)]


def test_a_layer_that_is_given_whole_numbers_by_name_counts_as_an_embedding():
    class Named(Reader):
        def forward(self, ids):
            return self.head(self.embedding(input=ids).mean(dim=1))

    assert chosen(Named(), IDS) == [("embedding", 0, 0)]


def test_a_search_for_the_embedding_leaves_a_table_beside_the_samples_whole():
    class Beside(Reader):
        def forward(self, inputs):
            assert len(inputs["table"]) == 7
            return self.head(self.embedding(inputs["ids"]).mean(dim=1))

    assert chosen(Beside(), {"ids": IDS, "table": torch.arange(7)}) == [("embedding", 0, 0)]


class Counts(nn.Module):
    """Turns what it is given to floating numbers, which four layers read one after the other."""

    def __init__(self, layers=4):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(layers))

    def forward(self, ids):
        h = torch.view_as_real(ids).sum(dim=-1) if ids.is_complex() else ids.float()
        for layer in self.layers:
            h = layer(h)
        return h


@pytest.mark.parametrize(
    ("inputs", "advice"),
    [
        (IDS, "Pass floating numbers, as the model computes them from these (`inputs.float()`)"),
        (
            torch.complex(IDS.float(), IDS.float()),
            "Pass `torch.view_as_real(inputs)`, and turn it back with `torch.view_as_complex` in the model",
        ),
    ],
    ids=["whole", "complex"],
)
@pytest.mark.parametrize("layers", [1, 4])
def test_without_an_embedding_an_error_names_up_to_three_modules_that_may_be_disturbed(layers, inputs, advice):
    names = [f"layers.{i}" for i in range(layers)][:3]
    with pytest.raises(TypeError) as caught:
        chosen(Counts(layers), inputs)
    text = str(caught.value)
    assert text.startswith("`inputs` (")
    assert "holds no floating tensor that noise could disturb, and no embedding has run. " in text
    assert text.endswith(f"{advice}; or name modules whose output it is to disturb, for instance noise_at={names}.")


def test_a_module_that_runs_more_often_than_before_is_an_error():
    network, sigma = Reader(), torch.ones(len(IDS))
    noise = Noise.at(network, IDS, (True,), ["embedding"], 0)
    rows = noise.draw(IDS, digests(IDS, (True,)), torch.zeros(len(IDS), dtype=torch.int64))
    text = (
        "`noise_at` names 'embedding', whose output changed its shape or its number of runs between two forward "
        "passes: got shape [400, 5, 8] in run 2, for 400 samples."
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(text)}$"):
        noise.outputs(network, IDS, rows, sigma, lambda ids: network(ids) + network(ids))


@pytest.mark.parametrize("three", [(3,), (3, 8, 1), (3, 9), (2, 8), (4, 8)])
def test_an_output_whose_shape_depends_on_more_than_the_number_of_samples_is_refused(three):
    text = (
        f"`noise_at` names 'm', whose output has shape [2, 8] for 2 samples and {list(three)} for 3: one dimension "
        "must be the number of samples, and the others stay. Name another module."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        _site("m", 0, (2, 8), three)
    assert _site("m", 1, (8, 2, 5), (8, 3, 5)) == ("m", 1, 1, (8, 5))


@pytest.mark.parametrize("fails", [False, True])
def test_no_hook_stays_on_the_model(fails):
    network, ids, target = reading()

    def criterion(outputs, target):
        if fails:
            raise RuntimeError("stop")
        return outputs.argmax(dim=1) == target

    if fails:
        with pytest.raises(RuntimeError, match="stop"):
            sample_basin(network, ids, target, noise_at=["embedding"], criterion=criterion)
    else:
        sample_basin(network, ids, target, noise_at=["embedding"], criterion=criterion)
    assert not any(module._forward_hooks for module in network.modules())


def test_a_compiled_network_has_the_same_basin():
    network, ids, target = reading()
    compiled = torch.compile(Reader(), backend="eager")
    found, expected = (
        sample_basin(each, ids, target, noise_at=["embedding"], per_ray=True) for each in (compiled, network)
    )
    assert torch.equal(found.radii, expected.radii)
    assert found.radius == expected.radius


# Inputs by name ------------------------------------------------------------------------------------------------------


class Two(nn.Module):
    """The sign of a + b, from a mapping or a sequence."""

    def forward(self, inputs):
        a, b = inputs.values() if isinstance(inputs, dict) else inputs
        return (a + b)[:, 0]


@pytest.mark.parametrize("make", [lambda a, b: {"a": a, "b": b}, lambda a, b: [a, b]], ids=["mapping", "sequence"])
def test_only_the_named_inputs_are_disturbed(make):
    a, b = gaussian(2000, 1, seed=5), gaussian(2000, 1, seed=6)
    inputs, target = make(a, b), ((a + b)[:, 0] > 0).long()
    names = list(inputs) if isinstance(inputs, dict) else ["0", "1"]
    both, first = (sample_basin(Two(), inputs, target, noise_at=some, rays=4) for some in (names, names[:1]))
    # Noise on both is sqrt(2) times as strong. n = 8000 rays: relative standard errors of 0.02; the bound is 5.
    assert first.radius / both.radius == pytest.approx(math.sqrt(2), rel=0.14)
    assert both.radius == sample_basin(Two(), inputs, target, rays=4).radius


def test_an_input_without_floating_numbers_is_refused():
    inputs = {"a": gaussian(10, 1), "ids": torch.arange(10)}
    network = nn.Module()
    network.forward = lambda inputs: inputs["a"][:, 0]
    with pytest.raises(TypeError, match=r"^`noise_at` names the input 'ids', which holds no floating tensor"):
        sample_basin(network, inputs, torch.ones(10).long(), noise_at=["ids"])


def test_metric_takes_the_names():
    network, ids, target = reading()
    metric = SampleBasin(noise_at=["embedding"])
    metric.update(network, ids[:150], target[:150])
    metric.update(network, ids[150:], target[150:])
    expected = sample_basin(network, ids, target, noise_at=["embedding"])
    assert float(metric.compute()) == pytest.approx(expected.radius, rel=0.01)
    assert metric.result().interval == pytest.approx(expected.interval, rel=0.01)


# Random in eval mode -------------------------------------------------------------------------------------------------


def test_a_network_that_is_random_in_eval_mode_is_warned_of():
    network = Reader(lambda h: nn.functional.dropout(h, 0.5))
    with pytest.warns(
        UserWarning, match=r"^The model is random in eval mode: two identical calls gave different outputs"
    ):
        sample_basin(network, IDS, torch.zeros(400).long(), noise_at=["embedding"], accuracy=0.9)
