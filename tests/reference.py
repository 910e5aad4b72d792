"""Slow, obvious twins of netdyn's numbers, and the layers on which they are compared.

Every function here is written from the definition, with loops, scipy and exact fractions; none shares code with netdyn.

    fields    [samples, units]    local fields
    target    [samples]           classes 0 .. K - 1
    tuning    [classes, units]    2 AUC - 1, NaN for a class without samples, or without samples outside it
    pathway   [classes, units]    or [1, units], a single logit
"""

import copy
import itertools
import math
from fractions import Fraction
from typing import NamedTuple

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import scipy.stats
import torch


def as_array(x):
    """Float tensors and lists become float64 (exactly, from any narrower float); integer tensors stay integers."""
    if isinstance(x, torch.Tensor):
        x = (x.detach().double() if x.is_floating_point() else x).cpu().numpy()
    return np.asarray(x)


# Ranks ------------------------------------------------------------------------------------------------------------


def midranks(x):
    """Ranks 1 .. S along the first axis, ties sharing their mean rank, a column that holds NaN all NaN."""
    return np.asarray(scipy.stats.rankdata(as_array(x), method="average", axis=0, nan_policy="propagate"))


def class_tuning(fields, target, num_classes):
    """Wins minus losses of class k's samples against all others, as a share of the pairs."""
    fields, target = as_array(fields), as_array(target)
    tuning = np.full((num_classes, fields.shape[1]), np.nan)
    for k in range(num_classes):
        members, others = fields[target == k], fields[target != k]
        if len(members) == 0 or len(others) == 0:
            continue
        score = np.zeros(fields.shape[1])
        for row in members:
            score += (row > others).sum(axis=0)
            score -= (row < others).sum(axis=0)
        tuning[k] = score / (len(members) * len(others))
    tuning[:, np.isnan(fields.astype(float)).any(axis=0)] = np.nan
    return tuning


def centred_pathway(pathway, num_classes, centre=True):
    """The pathway less its mean over classes, in exact fractions; a single logit m is (-m/2, +m/2)."""
    rows = [[Fraction(float(m)) for m in row] for row in as_array(pathway)]
    if len(rows) == 1 and num_classes == 2:
        rows = [[-m / 2 for m in rows[0]], [m / 2 for m in rows[0]]]
    if centre:
        means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        rows = [[m - mean for m, mean in zip(row, means, strict=True)] for row in rows]
    return np.array([[float(m) for m in row] for row in rows])


def signs(tuning, pathway, centre=True):
    """Sign of the pathway where the class is present and wired to the unit, 0 where it is to be left out."""
    tuning = as_array(tuning)
    return np.where(np.isnan(tuning), 0.0, np.sign(centred_pathway(pathway, len(tuning), centre)))


def order_index(tuning, pathway, centre=True):
    """Mean of sign x tuning over the classes present and wired."""
    tuning, sign = as_array(tuning), signs(tuning, pathway, centre)
    index = np.full(tuning.shape[1], np.nan)
    for i in range(tuning.shape[1]):
        kept = [k for k in range(len(tuning)) if sign[k, i] != 0]
        if kept and np.nansum(np.abs(tuning[:, i])) > 0:
            index[i] = sum(sign[k, i] * tuning[k, i] for k in kept) / len(kept)
    return index


def sign_correlation(num_classes, centre=True):
    """Correlation of the signs of two entries of a centred Gaussian vector, whose own correlation is -1/(K - 1)."""
    return 2 / math.pi * math.asin(-1 / (num_classes - 1)) if centre else 0.0


def order_alignment(tuning, pathway, centre=True):
    """Sum of sign x tuning in units of its standard deviation under random wiring."""
    tuning, sign = as_array(tuning), signs(tuning, pathway, centre)
    z = np.full(tuning.shape[1], np.nan)
    for i in range(tuning.shape[1]):
        kept = [k for k in range(len(tuning)) if sign[k, i] != 0]
        variance = 0.0
        for k, j in itertools.product(kept, kept):
            variance += tuning[k, i] * tuning[j, i] * (1 if k == j else sign_correlation(len(tuning), centre))
        if variance > 1e-12:
            z[i] = sum(sign[k, i] * tuning[k, i] for k in kept) / math.sqrt(variance)
    return z


def oriented_ranks(fields, target, pathway, num_classes, centre=True):
    """For each class, u or 1 - u of its samples over the wired units with a finite, varying field, as fractions."""
    fields, target = as_array(fields), as_array(target)
    pathway = centred_pathway(pathway, num_classes, centre)
    ranks, samples = midranks(fields), len(fields)
    live = [i for i in range(fields.shape[1]) if not np.isnan(ranks[:, i]).any() and len(set(fields[:, i])) > 1]
    oriented = [[] for _ in range(num_classes)]
    for i, k in itertools.product(live, range(num_classes)):
        if pathway[k, i] != 0:
            for rank in ranks[target == k, i]:
                u = (Fraction(float(rank)) - Fraction(1, 2)) / samples
                oriented[k].append(u if pathway[k, i] > 0 else 1 - u)
    return oriented


def rank_distribution(fields, target, pathway, num_classes, bins=20, centre=True):
    """Histogram densities on [0, 1]; a value on an inner edge counts half in each of the two bins that meet there."""
    density = np.full((num_classes, bins), np.nan)
    for k, oriented in enumerate(oriented_ranks(fields, target, pathway, num_classes, centre)):
        counts = [Fraction(0)] * bins
        for u in oriented:
            position = u * bins
            right = math.floor(position)
            left = right - 1 if position == right else right
            counts[left] += Fraction(1, 2)
            counts[right] += Fraction(1, 2)
        if oriented:
            density[k] = [float(count * bins / len(oriented)) for count in counts]
    return density


def rpd_gradient(fields, target, pathway, num_classes, centre=True):
    """Mean over classes of 12 (E[u] - 1/2), the least-squares slope of a density with the moment E[u]."""
    target = as_array(target)
    slopes = []
    for k, oriented in enumerate(oriented_ranks(fields, target, pathway, num_classes, centre)):
        if oriented and (target != k).any():
            slopes.append(12 * (sum(oriented) / len(oriented) - Fraction(1, 2)))
    return float(sum(slopes) / len(slopes)) if slopes else math.nan


# Modes ------------------------------------------------------------------------------------------------------------


def transfer_order(fields, outputs):
    """Share of the pairs with different fields whose outputs are strictly in the same order, over all pairs."""
    fields, outputs = as_array(fields), as_array(outputs)
    share = np.full(fields.shape[1], np.nan)
    for i in range(fields.shape[1]):
        field, output = fields[:, i], outputs[:, i]
        different = kept = 0
        for s in range(len(field)):
            different += int((field[s] < field).sum())
            kept += int(((field[s] < field) & (output[s] < output)).sum())
        if different and not np.isnan(field.astype(float)).any():
            share[i] = kept / different
    return share


def discoveries(index):
    """Which order indices count as order-preserving: from the smallest size on at which at most a fifth is false."""
    index = as_array(index)
    for size in sorted({abs(value) for value in index if value != 0}):
        if 5 * (1 + (index <= -size).sum()) <= (index >= size).sum():
            return index >= size
    return np.zeros(len(index), dtype=bool)


def opt_fraction(tuning, pathway, constant, alpha=0.05, centre=True):
    """Share of order-preserving units among the live, wired ones, and the rule that found it."""
    tuning = as_array(tuning)
    present = ~np.isnan(tuning).all(axis=1)
    wired = (signs(tuning, pathway, centre) != 0).any(axis=0)
    counted = ~as_array(constant) & wired
    if present.sum() >= 5:
        z = order_alignment(tuning, pathway, centre)[counted]
        critical = scipy.stats.norm.ppf(1 - alpha)
        return (float(np.mean(z > critical)) if len(z) else math.nan), "sign-flip"
    index = np.nan_to_num(order_index(tuning, pathway, centre)[counted])
    if len(index) < 20:
        return math.nan, "none"
    return float(np.mean(discoveries(index))), "false-discovery"


def layer_z(tuning, pathway, centre=True):
    """Agreement of tuning and wiring over all units, in units of its spread over all permutations of the classes."""
    tuning = as_array(tuning)
    present = [k for k in range(len(tuning)) if not np.isnan(tuning[k]).all()]
    sign, tuning = np.sign(centred_pathway(pathway, len(tuning), centre))[present], np.nan_to_num(tuning[present])
    classes = range(len(present))
    sums = [sum(sign[row] @ tuning[k] for k, row in enumerate(rows)) for rows in itertools.permutations(classes)]
    return (sums[0] - np.mean(sums)) / np.std(sums)


# Maps -------------------------------------------------------------------------------------------------------------


def mlp_map(weights, factors=None):
    """Map from each hidden layer's local field to the logits of an MLP, for l = 1 .. L - 1.

    M_l = W_L diag(f_{L-1}) W_{L-1} ... diag(f_{l+1}) W_{l+1}, with `weights` W_1 .. W_L as [out, in] and `factors`
    f_1 .. f_{L-1} batch normalisation's gamma / sigma, each of the layer whose local field it scales.
    """
    weights = [as_array(w).astype(float) for w in weights]
    factors = [np.ones(len(w)) for w in weights[:-1]] if factors is None else [as_array(f) for f in factors]
    maps = []
    for layer in range(1, len(weights)):
        product = np.eye(len(weights[layer - 1]))
        for above in range(layer, len(weights)):
            product = weights[above] @ product
            if above < len(weights) - 1:
                product = np.diag(factors[above]) @ product
        maps.append(product)
    return maps


# Basins -----------------------------------------------------------------------------------------------------------


def accuracy(outputs, target):
    """Share of right answers: the largest logit, or the sign of a single one; an output that is not finite is wrong."""
    outputs = outputs.reshape(len(outputs), -1)
    predicted = (outputs[:, 0] > 0).long() if outputs.shape[1] == 1 else outputs.argmax(dim=1)
    right = (predicted == target) & outputs.isfinite().all(dim=1)
    return right.double().mean().item()


def accuracy_ladder(model, inputs, target, sigmas, repeats, generator):
    """Accuracy in evaluation mode under Gaussian input noise, for each sigma the mean over the repeats."""
    model = copy.deepcopy(model).eval()
    ladder = []
    for sigma in sigmas:
        rungs = []
        for _ in range(repeats):
            noise = torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype)
            with torch.no_grad():
                rungs.append(accuracy(model(inputs + sigma * noise), target))
        ladder.append(sum(rungs) / repeats)
    return ladder


def weight_accuracy_ladder(model, inputs, target, sigmas, repeats, generator):
    """Accuracy with each weight of two or more dimensions moved by sigma x its population deviation x N(0, 1)."""
    ladder = []
    for sigma in sigmas:
        rungs = []
        for _ in range(repeats):
            moved = copy.deepcopy(model).eval()
            with torch.no_grad():
                for weight in moved.parameters():
                    if weight.ndim >= 2:
                        noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
                        weight += sigma * weight.std(correction=0) * noise
                rungs.append(accuracy(moved(inputs), target))
        ladder.append(sum(rungs) / repeats)
    return ladder


def ladder_radius(sigmas, accuracies, accuracy):
    """First sigma at which a ladder falls below `accuracy`, straight between its rungs in log sigma.

    0 where the first rung is below it already, infinity where none is.
    """
    below = [j for j, value in enumerate(accuracies) if value < accuracy]
    if not below:
        return math.inf
    j = below[0]
    if j == 0:
        return 0.0
    share = (accuracies[j - 1] - accuracy) / (accuracies[j - 1] - accuracies[j])
    return math.exp((1 - share) * math.log(sigmas[j - 1]) + share * math.log(sigmas[j]))


def curve_crossing(curve, share):
    """The first sigma at which a curve has fallen to `share`: a walk from knot to knot.

    0 where it starts there; before the first knot straight in sigma, between knots in log sigma.
    """
    if share >= curve.clean - 1e-12:
        return 0.0
    sigma, before = 0.0, curve.clean
    for knot, after in zip(curve.sigma.tolist(), curve.share.tolist(), strict=True):
        if after <= share + 1e-12:
            part = min((before - share) / (before - after), 1.0)
            return knot * part if sigma == 0 else math.exp((1 - part) * math.log(sigma) + part * math.log(knot))
        sigma, before = knot, after
    return math.inf


def median_interval(values, level=0.95):
    """Hettmansperger-Sheather interval for the median, as (low, high, level).

    [x_(d), x_(n+1-d)] covers the median with probability g_d = 1 - 2 P(B <= d - 1), B binomial (n, 1/2). Let d be the
    last to reach `level`, I = (g_d - level) / (g_d - g_(d+1)) and l = (n - d) I / (d + (n - 2d) I); both ends move by
    the share l towards the next order statistic. Where even d = 1 does not reach `level` (n < 6 for 0.95), these are
    the extremes, with the level they do reach.
    """
    ordered = sorted(float(v) for v in values)
    n = len(ordered)

    def coverage(d):
        return 1 - 2 * scipy.stats.binom.cdf(d - 1, n, 0.5)

    if coverage(1) < level:
        return ordered[0], ordered[-1], float(coverage(1))
    d = max(d for d in range(1, n // 2 + 1) if coverage(d) >= level)
    share = float((coverage(d) - level) / (coverage(d) - coverage(d + 1)))
    weight = (n - d) * share / (d + (n - 2 * d) * share)
    if weight == 0:
        return ordered[d - 1], ordered[n - d], level
    low = (1 - weight) * ordered[d - 1] + weight * ordered[d]
    high = (1 - weight) * ordered[n - d] + weight * ordered[n - d - 1]
    return low, high, level


def clustered_error(values, cluster, weight=None):
    """Standard error of a mean of clusters: C/(C - 1) times the sum of squared cluster sums of deviations, over n^2."""
    values = [float(v) for v in values]
    weight = [1.0] * len(values) if weight is None else [float(w) for w in weight]
    mean, sums = sum(w * v for v, w in zip(values, weight, strict=True)) / sum(weight), {}
    for value, c, w in zip(values, cluster, weight, strict=True):
        sums[int(c)] = sums.get(int(c), 0.0) + w * (value - mean)
    count = len(sums)
    if count < 2:
        return math.inf
    return math.sqrt(count / (count - 1) * sum(g**2 for g in sums.values())) / len(values)


def shared_error(right, cluster, weight=None):
    """Root of the mean product of a sample's deviations on two different rays, times sqrt(sum of squared sizes)/S."""
    rows, products = as_array(right), []
    weight = np.ones(rows.shape[1]) if weight is None else as_array(weight)
    means = [np.average(row[~np.isnan(row)], weights=weight[~np.isnan(row)]) for row in rows]
    apart = [[w * (x - mean) for x, w in zip(row, weight, strict=True)] for row, mean in zip(rows, means, strict=True)]
    for s in range(rows.shape[1]):
        for a, b in itertools.permutations(range(len(rows)), 2):
            if not (math.isnan(rows[a, s]) or math.isnan(rows[b, s])):
                products.append(apart[a][s] * apart[b][s])
    if not products:
        return 0.0
    sizes = [sum(1 for c in as_array(cluster) if c == k) for k in set(as_array(cluster).tolist())]
    return math.sqrt(max(sum(products) / len(products), 0) * sum(n**2 for n in sizes)) / rows.shape[1]


def line_crossing(x, y, level):
    """Where the straight line through two points is at a level."""
    return x[0] + (level - y[0]) / (y[1] - y[0]) * (x[1] - x[0])


# Layers to compare on ---------------------------------------------------------------------------------------------


class Layer(NamedTuple):
    fields: torch.Tensor
    target: torch.Tensor
    pathway: torch.Tensor
    classes: int

    @property
    def tuning(self):
        return torch.from_numpy(class_tuning(self.fields, self.target, self.classes))

    @property
    def share(self):
        return torch.bincount(self.target, minlength=self.classes).double() / len(self.target)

    @property
    def constant(self):
        return (self.fields == self.fields[:1]).all(dim=0)


def random_layer(samples=60, units=5, classes=4, levels=None, seed=0):
    """Gaussian local fields, or integers 0 .. levels - 1; labels in turn, shuffled; a Gaussian pathway."""
    draw = torch.Generator().manual_seed(seed)
    fields = torch.randn(samples, units, generator=draw, dtype=torch.float64)
    if levels is not None:
        fields = torch.randint(levels, (samples, units), generator=draw).double()
    target = (torch.arange(samples) % classes)[torch.randperm(samples, generator=draw)]
    return Layer(fields, target, torch.randn(classes, units, generator=draw, dtype=torch.float64), classes)


def _with(layer, **columns):
    """The layer with columns of its fields or pathway set: `field={unit: value}`, `pathway={unit: value}`."""
    fields, pathway = layer.fields.clone(), layer.pathway.clone()
    for unit, value in columns.get("field", {}).items():
        fields[:, unit] = value
    for unit, value in columns.get("pathway", {}).items():
        pathway[:, unit] = torch.as_tensor(value, dtype=pathway.dtype)
    return layer._replace(fields=fields, pathway=pathway)


def _nasty_layers():
    plain, tied = random_layer(), random_layer(levels=3)
    holed = plain.fields.clone()
    holed[7, 2] = math.nan
    infinite = plain.fields.clone()
    infinite[:9, 0], infinite[5:20, 1], infinite[20:30, 1] = math.inf, -math.inf, math.inf
    zeros = torch.where(plain.fields > 0, 0.0, -0.0)
    zeros[0] = -1.0
    yield "plain", plain
    yield "tied", tied
    yield "skewed", plain._replace(target=torch.tensor([0] * 50 + [1] * 7 + [2] * 2 + [3]))
    yield "constant unit", _with(tied, field={1: 2.0, 3: 0.0})
    yield "all constant", _with(plain, field=dict.fromkeys(range(5), 1.5))
    yield "NaN", plain._replace(fields=holed)
    yield "infinities", plain._replace(fields=infinite)
    yield "signed zeros", plain._replace(fields=zeros)
    yield "one class", plain._replace(target=torch.full((60,), 2))
    yield "absent class", random_layer(classes=3)._replace(classes=5, pathway=random_layer(classes=5).pathway)
    yield "one sample", random_layer(samples=1)
    yield "two samples", random_layer(samples=2, classes=2)
    yield "K = 1", random_layer(classes=1)
    yield "K = 2", random_layer(classes=2)
    yield "single logit", random_layer(classes=2)._replace(pathway=plain.pathway[:1])
    yield "K = 10", random_layer(samples=200, classes=10, levels=40)
    yield "K = 1000", random_layer(samples=2000, units=2, classes=1000)
    yield "unwired unit", _with(plain, pathway={0: 0.0, 4: 0.1})
    yield "unwired classes", _with(plain, pathway={0: [1, -1, 0, 0], 1: [5, 3, 4, 4], 2: [0, 0, 0, 8]})
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        yield name, random_layer(samples=300)._replace(fields=random_layer(samples=300).fields.to(dtype))
    yield "float32 pathway", plain._replace(pathway=plain.pathway.float())


NASTY_LAYERS = dict(_nasty_layers())


@st.composite
def layers(draw, max_samples=24):
    """Small layers of integers, with ties, constant and unwired units, absent and unwired classes."""
    classes = draw(st.integers(2, 6))
    samples = draw(st.integers(2, max_samples))
    units = draw(st.integers(1, 4))
    fields = draw(hnp.arrays(np.float64, (samples, units), elements=st.integers(-4, 4)))
    target = draw(hnp.arrays(np.int64, samples, elements=st.integers(0, classes - 1)))
    pathway = draw(hnp.arrays(np.float64, (classes, units), elements=st.integers(-3, 3)))
    return Layer(torch.from_numpy(fields), torch.from_numpy(target), torch.from_numpy(pathway), classes)


# Networks without activations -------------------------------------------------------------------------------------


def normalised(norm, x):
    """Batch normalisation of images with its running statistics: a scale and a shift a channel."""
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None]
    return scale * (x - norm.running_mean[:, None, None]) + norm.bias[:, None, None]


def residual_tails(network):
    """What follows each local field of `networks.ResidualCNN` without activations, max-pooling an average.

    Written anew for this network, layer by layer. A block's inner field reaches the logits through the block's second
    half only: the way round the block does not depend on it.
    """

    def convolved(conv, x):
        return torch.nn.functional.conv2d(x, conv.weight, conv.bias, padding=1)

    def pooled(x):
        return torch.nn.functional.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)

    def second_half(block, x):
        return normalised(block.bn2, convolved(block.conv2, x))

    def whole(block, x):
        return x + second_half(block, normalised(block.bn1, convolved(block.conv1, x)))

    def head(x):
        return x.reshape(len(x), -1) @ network.head.weight.T + network.head.bias

    first, second = network.blocks
    return {
        "bn": lambda x: head(whole(second, whole(first, pooled(x)))),
        "blocks.0.bn1": lambda x: head(whole(second, second_half(first, x))),
        "blocks.0.relu": lambda x: head(whole(second, x)),
        "blocks.1.bn1": lambda x: head(second_half(second, x)),
        "blocks.1.relu": head,
    }


def jacobian(function, shape, dtype):
    """Derivatives [outputs, inputs] of an affine function of one sample, at zero."""
    result = torch.autograd.functional.jacobian(function, torch.zeros(1, *shape, dtype=dtype))
    return result.reshape(result.shape[1], -1)
