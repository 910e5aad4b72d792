"""Targets of every kind: accuracy, radius and modes against slow twins on what hooks take from the network."""

import copy
import math
import warnings
from collections import namedtuple

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

import reference
from netdyn import DynamicsWarning, Monitor, diagnose
from netdyn.basins.interval import clustered_error
from netdyn.engine import layers
from netdyn.functional import batchnorm_gap, sample_basin, weight_basin
from netdyn.metrics import SampleBasin
from networks import fill, samples

SAMPLES = 120


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


def simulated(network, inputs, accuracy, sigma, repeats=60):
    """Accuracy under fresh noise of level sigma; `accuracy` judges outputs."""
    draw, found = drawn(9), []
    with torch.no_grad():
        for _ in range(repeats):
            noise = torch.randn(inputs.shape, generator=draw)
            found.append(accuracy(network(inputs + sigma * noise)))
    return sum(found) / repeats


def share_of(labels, dim=1):
    """A judge of outputs: share of all entries with a label that are right, one by one."""

    def judge(outputs):
        predicted = outputs.argmax(dim)
        known = labels != -100
        return ((predicted == labels) & known).sum().item() / known.sum().item()

    return judge


def field_of(network, module, inputs):
    found = []
    hook = module.register_forward_hook(lambda module, args, output: found.append(output.detach()))
    with torch.no_grad():
        network(inputs)
    hook.remove()
    return found[0]


# One label per position -----------------------------------------------------------------------------------------------


class Segmenter(nn.Module):
    """A small U-Net: its middle has half the resolution."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.down, self.up = nn.Conv2d(6, 8, 2, stride=2), nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.out = nn.Conv2d(6, 3, 1)

    def forward(self, x):
        h = torch.relu(self.norm(self.first(x)))
        return self.out(h + self.up(torch.relu(self.down(h))))


@pytest.fixture(scope="module")
def pixels():
    """Images, some labels wrong, of each image another number of pixels without a label, of one all."""
    torch.manual_seed(2)
    net, x = Segmenter().eval(), torch.randn(SAMPLES, 1, 6, 6)
    with torch.no_grad():
        net.out.weight *= 5
        y = net(x).argmax(1)
    wrong = torch.rand(y.shape, generator=drawn(1)) < 0.1
    y = torch.where(wrong, (y + 1) % 3, y)
    empty = torch.arange(36).reshape(6, 6) < (torch.arange(SAMPLES) % 30)[:, None, None]
    y[empty] = -100
    y[7] = -100
    return net, x, y


@pytest.mark.filterwarnings("ignore:The layers")
def test_pixels_are_the_units_of_accuracy(pixels):
    net, x, y = pixels
    found = diagnose(net, x, y)
    assert found.accuracy == pytest.approx(share_of(y)(net(x)), abs=1e-12)
    assert found.accuracy == pytest.approx(found.sample_basin.clean, abs=1e-12)
    assert found.accuracy == pytest.approx(found.weight_basin.clean, abs=1e-12)
    assert (found.samples, found.num_classes) == (SAMPLES - 1, 3)
    assert found.guess == pytest.approx(torch.bincount(y[y >= 0]).max() / (y >= 0).sum())
    str(found), found.findings(), found.to_json(), found.figures()


def test_the_radius_of_pixels_is_that_of_a_simulation(pixels):
    net, x, y = pixels
    basin = sample_basin(net, x, y, accuracy=0.7, rays=8)
    # Over rays, an accuracy of some 2,500 pixels: with images as units its standard error is below .012 on 8 rays.
    assert simulated(net, x, share_of(y), basin.radius) == pytest.approx(0.7, abs=0.02)
    assert basin.interval[0] < basin.radius < basin.interval[1]


def test_the_radius_in_weight_space_is_that_of_a_simulation(pixels):
    net, x, y = pixels
    radius = weight_basin(net, x, y, accuracy=0.7, rays=24, samples=SAMPLES).radius
    judge, draw, above = share_of(y), drawn(3), 0
    for _ in range(100):
        moved = copy.deepcopy(net)
        with torch.no_grad():
            for weight in moved.parameters():
                if weight.ndim >= 2:
                    noise = torch.randn(weight.shape, generator=draw)
                    weight += radius * weight.std(correction=0) * noise
            above += judge(moved(x)) > 0.7
    # Half of all rays lie above: standard error .05 of these, and that of the median over 24 rays, about .1.
    assert 0.2 < above / 100 < 0.8


def test_the_batch_norm_gap_of_pixels_is_that_of_all_pixels(pixels):
    net, x, y = pixels
    trained = copy.deepcopy(net)
    trained.norm.train()
    kept = [i for i in range(SAMPLES) if i != 7]
    expected = share_of(y[kept])(trained(x[kept])) - share_of(y[kept])(net(x[kept]))
    assert batchnorm_gap(net, x, y) == pytest.approx(expected, abs=1e-6)


def test_modes_are_of_the_pixels_with_a_label(pixels):
    net, x, y = pixels
    with pytest.warns(DynamicsWarning, match=r"The layers \['down'\] have no modes.*positions of the labels, \[6, 6\]"):
        report = diagnose(net, x, y, measure=["modes", "linear"])
    assert '"-" in down: the layer\'s fields do not have the positions that have a label each.' in str(report)
    first, down = report.layers
    known = y >= 0
    fields = field_of(net, net.norm, x).movedim(1, -1)[known]
    tuning = reference.class_tuning(fields, y[known], 3)
    # With identities as activations the tail of the first layer is affine: its map by hand, pixel by pixel.
    h = torch.zeros(1, 6, 6, 6, requires_grad=True)
    logits = net.out(h + net.up(net.down(h)))
    pathway = torch.stack(
        [torch.autograd.grad(own.sum(), h, retain_graph=True)[0].mean((0, 2, 3)) for own in logits[0]]
    )
    assert np.allclose(first.order_index, reference.order_index(tuning, pathway), atol=1e-9)
    assert first.units == first.sampled == 6
    assert (down.sampled, math.isnan(down.opt_fraction)) == (0, True)

    def tail(at):
        h = net.norm(net.first(x))
        h = torch.relu(h) if at == "down" else h
        return share_of(y)(net.out(h + net.up(net.down(h))))

    assert [first.tail_accuracy, down.tail_accuracy] == pytest.approx([tail("norm"), tail("down")], abs=1e-9)


def test_batches_change_nothing_for_pixels(pixels):
    net, x, y = pixels
    options = {"measure": ["modes", "linear", "sample_basin", "weight_basin"], "layers": ["norm"], "weight_rays": 2}
    whole, cut = (diagnose(net, x, y, batch_size=size, **options) for size in (None, 50))
    assert cut.scalars() == pytest.approx(whole.scalars(), rel=1e-4)


def test_a_probability_per_pixel_is_right_above_one_half():
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1), nn.Sigmoid()).eval()
    x = torch.randn(60, 1, 5, 5, generator=drawn())
    with torch.no_grad():
        y = (net(x) > net(x).median()).float()
        expected = ((net(x) > 0.5) == y.bool()).double().mean().item()
    found = diagnose(net, x, y, measure=["modes", "linear"])
    assert found.accuracy == pytest.approx(expected, abs=1e-12)
    assert [layer.name for layer in found.layers] == ["0"]


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.hidden, self.out = nn.Embedding(30, 8), nn.Linear(16, 12), nn.Linear(12, 5)

    def forward(self, ids):
        return self.read(self.words(ids))

    def read(self, embedded):
        before = torch.cat([torch.zeros_like(embedded[:, :1]), embedded[:, :-1]], dim=1)
        return self.out(torch.relu(self.hidden(torch.cat([embedded, before], dim=2))))


def test_tokens_have_accuracy_radius_and_modes_of_their_own():
    torch.manual_seed(4)
    net, ids = Tagger().eval(), torch.randint(30, (SAMPLES, 7))
    y = net(ids).argmax(2)
    y[torch.arange(7) >= (2 + torch.arange(SAMPLES) % 6)[:, None]] = -100
    y[:, 0] = (y[:, 0] + (torch.arange(SAMPLES) % 4 == 0).long()) % 5
    found = diagnose(net, ids, y, accuracy=0.6, sample_rays=8)
    judge = share_of(y, dim=2)
    assert found.accuracy == pytest.approx(judge(net(ids)), abs=1e-12)
    embedded = net.words(ids).detach()
    close = simulated(net.read, embedded, judge, found.sample_basin.radius)
    # Some 520 tokens on 8 rays: the standard error over rays is below .01.
    assert close == pytest.approx(0.6, abs=0.03)
    assert found.sample_basin.noise_at == ("words",)
    known, fields = y >= 0, field_of(net, net.hidden, ids)
    tuning = reference.class_tuning(fields[known], y[known], 5)
    (layer,) = found.layers
    assert np.allclose(layer.order_index, reference.order_index(tuning, net.out.weight), atol=1e-9)
    assert layer.opt_fraction == reference.opt_fraction(tuning, net.out.weight, torch.zeros(12, dtype=torch.bool))[0]


def test_of_many_words_a_choice_stands_for_all():
    torch.manual_seed(5)
    net, ids = Tagger(), torch.randint(30, (SAMPLES, 7))
    net.out = nn.Linear(12, 40)
    net.eval()
    y = net(ids).argmax(2)
    y[::4, 1] = 3
    (layer,) = (found := diagnose(net, ids, y, max_classes=6, measure=["modes", "linear"])).layers
    assert found.accuracy == pytest.approx(share_of(y, dim=2)(net(ids)), abs=1e-12)
    present = y.unique()
    chosen = present[torch.randperm(len(present), generator=drawn())[:6].sort().values]
    tuning = reference.class_tuning(field_of(net, net.hidden, ids).flatten(0, 1), y.flatten(), 40)[chosen]
    pathway = net.out.weight[chosen]
    assert np.allclose(layer.order_index, reference.order_index(tuning, pathway), atol=1e-9)
    linear = net.out(field_of(net, net.hidden, ids))
    assert layer.tail_accuracy == pytest.approx(share_of(y, dim=2)(linear), abs=1e-9)
    z, z_linear = (value.detach().flatten(0, 1)[:, chosen].double() for value in (net(ids), linear))
    z, z_linear = (value - value.mean(1, keepdim=True) for value in (z, z_linear))
    z, z_linear = (value - value.mean(0) for value in (z, z_linear))
    share = (z * z_linear).sum() ** 2 / (z.square().sum() * z_linear.square().sum())
    assert layer.linear_share == pytest.approx(share.item(), rel=1e-4)


def test_of_many_positions_a_choice_shows_the_modes(pixels, monkeypatch):
    net, x, y = pixels
    options = {"measure": ["modes"], "layers": ["norm"]}
    (whole,) = diagnose(net, x, y, **options).layers
    monkeypatch.setattr(layers, "POSITIONS", 1500)
    (some,) = diagnose(net, x, y, **options).layers
    # 1500 of some 2,600 pixels: the standard error of an index is about .02.
    assert 0 < (some.order_index - whole.order_index).abs().max() < 0.1


def test_the_error_of_an_accuracy_over_positions_is_that_of_drawing_samples_anew():
    """300 sets of 150 samples of 1 to 12 positions, which are right together: n = 300, its sd is known to 4 %."""
    draw = np.random.default_rng(0)
    shares, errors = [], []
    for _ in range(300):
        sizes = draw.integers(1, 13, 150)
        chance = draw.beta(2, 1, 150)
        right = draw.binomial(sizes, chance) / sizes
        weight = torch.from_numpy(sizes / sizes.mean())
        shares.append((right * sizes).sum() / sizes.sum())
        errors.append(clustered_error(torch.from_numpy(right), torch.arange(150), weight)[0])
    assert np.mean(errors) == pytest.approx(np.std(shares), rel=0.12)


# Several labels -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def several():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 5)).eval(), torch.randn(200, 6)
    y = (net(x) > 0.01).float()
    y[:10, 2] = 1 - y[:10, 2]
    return net, x, y


def all_right(y):
    return lambda outputs: ((outputs > 0) == y.bool()).all(1).double().mean().item()


def each_right(y):
    return lambda outputs: ((outputs > 0) == y.bool()).double().mean().item()


@pytest.mark.parametrize(("of", "judge"), [("samples", all_right), ("labels", each_right)])
def test_several_labels_have_the_accuracy_and_the_radius_of_a_simulation(several, of, judge):
    net, x, y = several
    found = diagnose(net, x, y, accuracy_of=of, accuracy=0.7, sample_rays=8, measure=["sample_basin"])
    assert found.accuracy == pytest.approx(judge(y)(net(x)), abs=1e-12)
    # 200 samples on 8 rays: the standard error over rays is below .012.
    assert simulated(net, x, judge(y), found.sample_basin.radius) == pytest.approx(0.7, abs=0.03)
    assert found.sample_basin.radius == sample_basin(net, x, y, accuracy=0.7, rays=8, accuracy_of=of).radius


def test_modes_of_several_labels_take_each_label_for_itself(several):
    net, x, y = several
    (layer,) = diagnose(net, x, y, measure=["modes", "linear"]).layers
    fields = field_of(net, net[0], x)
    tuning = np.stack([reference.class_tuning(fields, y[:, k].long(), 2)[1] for k in range(5)])
    index = reference.order_index(tuning, net[2].weight, centre=False)
    assert np.allclose(layer.order_index, index, atol=1e-9)
    assert layer.tail_accuracy == pytest.approx(all_right(y)(net[2](net[0](x))), abs=1e-9)


def test_of_many_labels_a_choice_stands_for_all(several):
    net, x, y = several
    (layer,) = diagnose(net, x, y, max_classes=3, measure=["modes", "linear"]).layers
    chosen = torch.randperm(5, generator=drawn())[:3].sort().values
    fields = field_of(net, net[0], x)
    tuning = np.stack([reference.class_tuning(fields, y[:, k].long(), 2)[1] for k in chosen])
    expected = reference.order_index(tuning, net[2].weight[chosen], centre=False)
    assert np.allclose(layer.order_index, expected, atol=1e-9)
    assert layer.tail_accuracy == pytest.approx(all_right(y)(net[2](net[0](x))), abs=1e-9)


def test_labels_that_are_not_known_are_left_out(several):
    net, x, y = several
    holed = y.clone()
    holed[::3, 1] = -1
    found = diagnose(net, x, holed, ignore_index=-1, accuracy_of="labels", measure=["modes"])
    known = holed >= 0
    assert found.accuracy == pytest.approx(((net(x) > 0) == y.bool())[known].double().mean().item(), abs=1e-12)
    whole = known.all(1)
    fields = field_of(net, net[0], x)[whole]
    tuning = np.stack([reference.class_tuning(fields, y[whole, k].long(), 2)[1] for k in range(5)])
    expected = reference.order_index(tuning, net[2].weight, centre=False)
    assert np.allclose(found.layers[0].order_index, expected, atol=1e-9)


def test_probabilities_of_several_labels_are_right_above_one_half(several):
    net, x, y = several
    found, plain = (diagnose(own, x, y, measure=["modes"]) for own in (nn.Sequential(*net, nn.Sigmoid()).eval(), net))
    assert found.accuracy == plain.accuracy
    assert torch.equal(found.layers[0].order_index, plain.layers[0].order_index)


# Numbers --------------------------------------------------------------------------------------------------------------


def autoencoder():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 1, 4, 2, 1)).eval()
    with torch.no_grad():
        net[2].weight *= 3
    return net, torch.rand(80, 1, 8, 8, generator=drawn(1))


def test_an_autoencoder_has_the_radius_of_a_simulation():
    net, x = autoencoder()
    basin = sample_basin(net, x, x, rays=8)
    clean, near = net(x).detach(), 0.5 * x.std(0, correction=0)
    judge = lambda outputs: ((outputs - clean).abs() <= near).flatten(1).all(1).double().mean().item()  # noqa: E731
    # 80 samples on 8 rays: the standard error over rays is below .02.
    assert simulated(net, x, judge, basin.radius) == pytest.approx(0.5, abs=0.06)


def test_modes_and_tails_of_an_autoencoder_are_of_a_choice_of_pixels():
    net, x = autoencoder()
    (layer,) = diagnose(net, x, x, max_classes=10, measure=["modes", "linear"]).layers
    order = torch.randperm(64, generator=drawn())[:10].sort().values
    fields = field_of(net, net[0], x).flatten(1)
    numbers = x.flatten(1)[:, order]
    tuning = np.array([[scipy.stats.spearmanr(f, n).statistic for f in fields.T] for n in numbers.T])
    h = torch.zeros(1, 4, 4, 4, requires_grad=True)
    outputs = net[2](h).flatten()
    pathway = torch.stack([torch.autograd.grad(outputs[k], h, retain_graph=True)[0].flatten() for k in order])
    expected = reference.order_index(tuning, pathway, centre=False)
    assert np.allclose(layer.order_index, expected, atol=1e-9, equal_nan=True)
    true, linear = (value.flatten(1)[:, order].double() for value in (net(x), net[2](net[0](x))))
    true, linear = true - true.mean(0), linear - linear.mean(0)
    share = (true * linear).sum() ** 2 / (true.square().sum() * linear.square().sum())
    assert layer.linear_share == pytest.approx(share.item(), rel=1e-4)


#: Rows of each forward pass: an evaluation would put back what the network itself holds.
PASSED = []


class Wide(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, outputs))

    def forward(self, x):
        PASSED.append(len(x))
        return self.inner(x)


@pytest.mark.parametrize("outputs", [200, 3000])
def test_an_evaluation_takes_few_passes_whatever_the_number_of_outputs(outputs):
    torch.manual_seed(0)
    net, x = Wide(outputs).eval(), torch.randn(256, 8)
    y = net(x).detach() + 0.1 * torch.randn(256, outputs)
    PASSED.clear()
    found = diagnose(net, x, y)
    assert sum(PASSED) / 256 <= 40
    assert found.sample_basin.radius > 0
    assert found.characteristic_maps.shape == (100, 8)


@pytest.mark.parametrize("scale", [0.0, 1e-8])
def test_outputs_whose_target_does_not_vary_take_no_part(scale):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(5, 24), nn.ReLU(), nn.Linear(24, 3)).eval(), torch.randn(200, 5)
    noise = torch.randn(200, 3)
    y = torch.stack([x.sum(1), 7 + scale * noise[:, 1], x[:, 0]], 1)
    with pytest.warns(DynamicsWarning, match=r"^The outputs \[1\] have a constant target"):
        found = sample_basin(net, x, y, rays=4)
    clean, near = net(x).detach()[:, ::2], 0.5 * y[:, ::2].std(0, correction=0)
    judge = lambda outputs: ((outputs[:, ::2] - clean).abs() <= near).all(1).double().mean().item()  # noqa: E731
    # 200 samples on 4 rays: the standard error over rays is below .018.
    assert simulated(net, x, judge, found.radius) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("samples", [1, 20, 999])
def test_targets_that_do_not_vary_at_all_are_refused(samples):
    """Among them numbers whose mean is rounded, so that they seem to deviate from it."""
    net, x = nn.Linear(3, 2), torch.randn(samples, 3)
    target = torch.tensor([0.3, 1 / 7], dtype=torch.float64).expand(samples, 2).clone()
    with pytest.raises(ValueError, match=r"^`target` must vary between samples.*`criterion=`"):
        sample_basin(net, x, target)


def classifier(outputs, samples):
    """A network that puts samples in every class, and the samples."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, outputs)).eval(), torch.randn(samples, 6)
    with torch.no_grad():
        net[2].bias -= net(x).median(0).values
    return net, x


# Labels of other forms ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outputs", "form"),
    [
        (2, lambda y: y.bool()),
        (3, lambda y: y[:, None]),
        (3, lambda y: y.float()),
        (3, lambda y: y.to(torch.uint8)),
        (1, lambda y: y[:, None]),
        (1, lambda y: y.bool()[:, None]),
    ],
)
def test_labels_of_any_form_give_the_same_report(outputs, form):
    net, x = classifier(outputs, 90)
    y = net(x).argmax(1) if outputs > 1 else (net(x)[:, 0] > 0).long()
    found, plain = (diagnose(net, x, target, weight_rays=2) for target in (form(y), y))
    assert found.scalars() == plain.scalars()
    assert found.accuracy == 1


def test_samples_without_a_label_are_left_out():
    net, x = classifier(3, 150)
    y = net(x).argmax(1)
    known = torch.arange(150) % 5 > 0
    found = diagnose(net, x, y.masked_fill(~known, -1), ignore_index=-1, weight_rays=2)
    assert found.scalars() == diagnose(net, x[known], y[known], weight_rays=2).scalars()
    metric = SampleBasin(ignore_index=-1)
    metric.update(net, x, y.masked_fill(~known, -1))
    assert metric.compute() == sample_basin(net, x[known], y[known]).radius


def test_a_start_line_says_that_floating_targets_are_labels():
    (net, x), said = classifier(3, 90), []
    watch = Monitor((x, net(x).argmax(1).float()), measure=["modes"])
    watch.inform = said.append
    watch.measure(net, 0)
    assert said[0].endswith("Note: the targets, whole numbers of a floating dtype, are taken as class labels.")


Out = namedtuple("Out", "features logits")


class Several(nn.Module):
    """Features and logits."""

    def __init__(self, logits_first):
        super().__init__()
        self.body, self.head, self.first = nn.Linear(6, 8), nn.Linear(8, 3), logits_first

    def forward(self, x):
        features = torch.relu(self.body(x))
        logits = self.head(features)
        return (logits, features) if self.first else (features, logits)


@pytest.mark.parametrize(("first", "width"), [(True, 3), (False, 8)])
def test_which_of_several_outputs_is_taken_is_told(first, width):
    x, y = samples(30), torch.arange(30) % 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        told = diagnose(fill(Several(first)), x, y, measure=["sample_basin"]).notes
        chosen = diagnose(
            fill(Several(first)), x, y, measure=["sample_basin"], forward=lambda m, x: m(x)[0 if first else 1]
        ).notes
    said = f"of several tensors that the model returns the first, [samples, {width}], is taken as the logits"
    assert (told, chosen) == ((said,), ())


class ByHand(nn.Module):
    """A sigmoid, or the same without being one, after one logit."""

    def __init__(self, end):
        super().__init__()
        self.net, self.end = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)), end

    def forward(self, x):
        return self.end(self.net(x))


SIGNS = {
    "logit": (lambda z: z, False),
    "sigmoid": (torch.sigmoid, False),
    "a softmax's second column": (lambda z: torch.cat([-z, z], dim=1).softmax(dim=1)[:, 1:], True),
    "a mean of sigmoids": (lambda z: (z.sigmoid() + (2 * z).sigmoid()) / 2, True),
    "a mean of sigmoids that says little": (lambda z: ((0.1 * z).sigmoid() + (0.2 * z).sigmoid()) / 2, False),
    "zeros": (lambda z: 0 * z, False),
    "logits from zero up": (lambda z: z.abs(), False),
}


@pytest.mark.parametrize(("end", "told"), SIGNS.values(), ids=SIGNS)
@pytest.mark.parametrize("measure", [["sample_basin"], ["modes"]])
def test_probabilities_that_are_read_as_logits_are_told(end, told, measure):
    x, y, network = samples(60), torch.arange(60) % 2, fill(ByHand(end))
    with torch.no_grad():  # logits on both sides of zero, some of them far from it
        z = network.net(x)
        network.net[2].weight *= 3 / z.std()
        network.net[2].bias.copy_(-(network.net(x) - network.net[2].bias).median())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        diagnose(network, x, y, measure=measure)
    said = [str(each.message) for each in caught if str(each.message).startswith("All outputs lie between 0 and 1")]
    assert len(said) == told


@pytest.mark.parametrize("measure", [["modes"], ["sample_basin"]])
@pytest.mark.parametrize("end", [lambda z: z, torch.sigmoid])
def test_the_loss_is_that_of_the_logits(end, measure):
    network, x, y = fill(ByHand(end)), samples(60), torch.arange(60) % 2
    found = diagnose(network, x, y, measure=measure).loss
    logits = network.net(x)[:, 0]
    assert found == pytest.approx(nn.functional.binary_cross_entropy_with_logits(logits, y.float()).item(), rel=1e-4)


@pytest.mark.parametrize("measure", [["modes"], ["sample_basin"]])
@pytest.mark.parametrize("end", [nn.Identity(), nn.Softmax(dim=1), nn.LogSoftmax(dim=1)])
def test_the_loss_of_several_classes_is_that_of_the_logits(end, measure):
    body, x, y = fill(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))), samples(60), torch.arange(60) % 3
    found = diagnose(nn.Sequential(*body, end), x, y, measure=measure).loss
    assert found == pytest.approx(nn.functional.cross_entropy(body(x), y).item(), rel=1e-4)


@pytest.mark.parametrize("measure", [["modes"], ["sample_basin"]])
def test_the_loss_of_a_network_that_is_sure_is_finite(measure):
    network, x = fill(ByHand(lambda z: torch.sigmoid(1000 * z))), samples(60)
    with torch.no_grad():
        network.net[2].bias -= network.net(x).median()
        y = (network(x)[:, 0] > 0.5).long()
    assert 0 <= diagnose(network, x, y, measure=measure).loss < 0.5


def test_a_sample_that_holds_nan_leaves_the_loss_of_probabilities_as_it_is():
    network, x, y = nn.Sequential(fill(nn.Linear(6, 3)), nn.Softmax(dim=1)), samples(60), torch.arange(60) % 3
    broken = x.clone()
    broken[4] = math.nan
    own = torch.arange(60) != 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = diagnose(network, broken, y, measure=["sample_basin"]).loss
        expected = diagnose(network, x[own], y[own], measure=["sample_basin"]).loss
    assert found == pytest.approx(expected)


def test_the_logits_of_a_named_tuple_are_not_called_its_first():
    class Named(Several):
        def forward(self, x):
            features, logits = super().forward(x)
            return Out(features, logits)

    x, y = samples(30), torch.arange(30) % 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert diagnose(fill(Named(False)), x, y, measure=["sample_basin"]).notes == ()
