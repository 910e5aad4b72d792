"""The table of tags: name, unit and meaning of everything that is logged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

#: How many of the scalars are sent to the loggers: each word adds to those before it.
Detail = Literal["summary", "layers", "full"]


@dataclass(frozen=True)
class Tag:
    """One kind of curve, histogram, figure or text; ``<layer>``, ``<k>`` (a class), ``<tensor>`` stand for names.

    A scalar is sent where ``detail`` is at least its own.
    """

    name: str
    unit: str
    meaning: str
    detail: Detail = "full"

    def names(self, tag: str) -> bool:
        """Whether this is the kind of a curve's tag.

        >>> Tag("modes/opt_fraction/<layer>", "", "").names("modes/opt_fraction/encoder.fc1")
        True
        """
        before, varies, _ = self.name.partition("<")
        return tag.startswith(before) if varies else tag == self.name


#: Unit of noise on the inputs.
_INPUT = "σ per input component"
#: Unit of noise on the weights.
_WEIGHT = "standard deviations of each weight tensor"

SCALARS = (
    Tag("modes/opt_fraction/<layer>", "share, 0 to 1", "units that preserve the order of the samples (OPT)", "layers"),
    Tag("modes/npt_fraction/<layer>", "share, 0 to 1", "units that do not preserve the order of the samples (NPT)"),
    Tag(
        "modes/order_z/<layer>",
        "standard deviations",
        "agreement of tuning and wiring in the whole layer, in units of its spread under a permuted wiring",
    ),
    Tag("modes/opt_chance/<layer>", "share, 0 to 1", "what opt_fraction exceeds by chance in 5 % of cases"),
    Tag("modes/positive_fraction/<layer>", "share, 0 to 1", "units with a positive order index"),
    Tag("modes/order_mean/<layer>", "−1 to 1", "mean order index of the units"),
    Tag(
        "modes/dead_fraction/<layer>",
        "share, 0 to 1",
        "units whose activation has the same output for every sample, such as a ReLU that is always off",
        "layers",
    ),
    Tag("modes/opt_mean", "share, 0 to 1", "mean of opt_fraction over the layers", "summary"),
    Tag("modes/dead_max", "share, 0 to 1", "largest dead_fraction of the layers", "summary"),
    Tag("modes/constant_fraction/<layer>", "share, 0 to 1", "units with the same local field for every sample"),
    Tag(
        "modes/rpd_gradient/<layer>",
        "slope, ±6(1 − 1/K)",
        "slope of the rank probability distribution: positive if a class ranks high in the units that raise its logit",
        "layers",
    ),
    Tag(
        "modes/transfer_order/<layer>",
        "share, 0 to 1",
        "pairs of samples whose order the activation keeps, mean over units",
    ),
    Tag(
        "phase/index",
        "−1 to 1",
        "whether RPD gradients rise from layer to layer (phase II, 1) or fall (phase I, −1)",
        "summary",
    ),
    Tag("phase/spread", "slope, 0 to 12(1 − 1/K)", "largest minus smallest RPD gradient of the layers"),
    Tag("phase/mean", "slope, ±6(1 − 1/K)", "mean RPD gradient of the layers"),
    Tag(
        "linear/tail_accuracy/<layer>", "share, 0 to 1", "accuracy without the activations from this layer on", "layers"
    ),
    Tag(
        "linear/share/<layer>",
        "share, 0 to 1",
        "squared correlation of the logits with those of the network without the activations from this layer on",
    ),
    Tag("linear/functional_depth", "layers", "first layer from which on the network acts linearly", "summary"),
    Tag("linear/affine_defect/<layer>", "share, 0 to 1", "share of the layer's pathway that depends on the sample"),
    Tag("basin/sample/radius", _INPUT, "noise on the inputs that brings accuracy down to its target", "summary"),
    Tag("basin/sample/low", _INPUT, "lower end of the radius's 95 % interval", "summary"),
    Tag("basin/sample/high", _INPUT, "upper end of the radius's 95 % interval", "summary"),
    Tag("basin/sample/change", "log ratio", "change of the radius since the last evaluation, on the same rays"),
    Tag("basin/sample/change_low", "log ratio", "lower end of the change's 95 % interval"),
    Tag("basin/sample/change_high", "log ratio", "upper end of the change's 95 % interval"),
    Tag("basin/sample/censored", "share, 0 to 1", "samples that are still right at the highest noise level"),
    Tag("basin/sample/class_radius/<k>", _INPUT, "the radius for the samples of one class"),
    Tag(
        "coverage/own",
        "share, 0 to 1",
        "validation samples reached by the answer for the nearest training sample",
        "summary",
    ),
    Tag("coverage/other", "share, 0 to 1", "the same for the nearest training sample of another class", "summary"),
    Tag("coverage/distance", _INPUT, "median distance of validation samples from the nearest training sample"),
    Tag(
        "coverage/apart",
        "share, 0 to 1",
        "chance that a validation sample is farther from the training samples than one of these is from the others",
    ),
    Tag("basin/weight/radius", _WEIGHT, "noise on the weights that brings accuracy down to its target", "summary"),
    Tag("basin/weight/low", _WEIGHT, "lower end of the radius's interval", "summary"),
    Tag("basin/weight/high", _WEIGHT, "upper end of the radius's interval", "summary"),
    Tag("basin/weight/change", "log ratio", "change of the rays' radii since the last evaluation, their median"),
    Tag("basin/weight/change_low", "log ratio", "lower end of the change's interval"),
    Tag("basin/weight/change_high", "log ratio", "upper end of the change's interval"),
    Tag("basin/weight/censored", "share, 0 to 1", "rays with accuracy above the target at the highest noise level"),
    Tag(
        "basin/weight/layer_radius/<tensor>",
        "standard deviations of the tensor",
        "the radius if this tensor alone is disturbed",
    ),
    Tag(
        "batchnorm/gap",
        "share, −1 to 1",
        "accuracy with batch statistics minus accuracy with running statistics",
        "summary",
    ),
    Tag("batchnorm/train_gap", "share, −1 to 1", "the same on the training probe"),
    Tag(
        "companions/node_strength/<layer>",
        "units of the weights",
        "weights to and from a unit, and its bias: mean of their sums",
    ),
    Tag(
        "companions/layer_fluctuation/<layer>",
        "units of the weights",
        "standard deviation of the units' node strengths",
    ),
    Tag(
        "companions/neural_persistence/<layer>",
        "0 to 1",
        "how far strong weights lie apart from those that tie all units together",
    ),
    Tag("companions/weight_variance/<layer>", "0 to 1/4", "variance of the absolute weights, divided by the largest"),
    Tag("companions/deep_graph_persistence", "0 to 1", "neural persistence of the strongest paths through all layers"),
    Tag(
        "companions/gate_entropy/<layer>",
        "bits, 0 to 1",
        "entropy of a unit being on (local field above 0), mean over units",
    ),
    Tag(
        "companions/effective_dimension/<layer>",
        "1 to units",
        "participation ratio of the fields' spectrum, without the bias of few samples",
    ),
    Tag(
        "companions/effective_rank/<layer>",
        "1 to units",
        "exponential of the entropy of the fields' spectrum; only with more samples than units",
    ),
    Tag(
        "companions/localisation/<layer>",
        "1/inputs to 1",
        "inverse participation ratio of the weights of the first layer, mean over units",
    ),
    Tag(
        "companions/map_localisation",
        "1/inputs to 1",
        "inverse participation ratio of the characteristic maps, mean over logits; where figures are drawn",
    ),
    Tag(
        "companions/bn_drift/<layer>",
        "standard deviations of the probe",
        "distance of running statistics from those of the probe",
    ),
    Tag("probe/accuracy", "share, 0 to 1", "accuracy on the training probe, in eval mode", "summary"),
    Tag("probe/val_accuracy", "share, 0 to 1", "accuracy on the validation probe, in eval mode", "summary"),
    Tag("netdyn/seconds", "seconds", "duration of this evaluation", "summary"),
    Tag("netdyn/overhead", "share", "time spent in evaluations, divided by the time spent training", "summary"),
    Tag(
        "netdyn/skipped",
        "count",
        "evaluations skipped so far, to keep to `max_overhead` or because they failed",
        "summary",
    ),
)

HISTOGRAMS = (
    Tag("modes/order_index/<layer>", "−1 to 1", "agreement of tuning and wiring, per unit"),
    Tag(
        "modes/alignment/<layer>",
        "standard deviations",
        "agreement of tuning and wiring, per unit, in units of its spread under random wiring",
    ),
    Tag(
        "companions/node_strengths/<layer>",
        "units of the weights",
        "weights to and from a unit, and its bias: their sum",
    ),
    Tag("companions/gate_entropies/<layer>", "bits, 0 to 1", "entropy of a unit being on (local field above 0)"),
    Tag("basin/sample/radii", "log₁₀ σ", "noise levels at which samples turn wrong"),
    Tag("basin/weight/radii", "log₁₀ σ", "noise level at which accuracy falls to its target, per ray"),
)

#: What to look at first; TensorBoard shows folders in the order of their names.
OVERVIEW, VERDICT = "0_netdyn/overview", "0_netdyn/verdict"

FIGURES = (
    Tag(OVERVIEW, "six panels", "how the training stands: the verdict, and the main numbers over the run"),
    Tag("modes/rpd", "density", "rank probability distribution, one curve per layer"),
    Tag("modes/map", "layer × step", "share of order-preserving units over the run"),
    Tag("modes/gradient_map", "layer × step", "RPD gradient over the run"),
    Tag("linear/tail", "share, 0 to 1", "accuracy without the activations from a layer on, against that layer"),
    Tag("linear/map", "layer × step", "accuracy without the activations from a layer on, over the run"),
    Tag("basin/curves", "share, 0 to 1", "accuracy against noise, one curve per class, with the radius"),
    Tag("wpa/characteristic_maps", "logit per input", "how each logit weighs the inputs when activations are removed"),
    Tag("wpa/subnetwork", "logit per input", "units of the first layer that contribute most to each logit"),
)


TEXTS = (Tag(VERDICT, "text", "how the training stands, and what this evaluation has found"),)


def is_sent(tag: str, detail: Detail) -> bool:
    """Whether a scalar is sent to the loggers.

    >>> is_sent("probe/accuracy", "summary"), is_sent("modes/order_z/fc1", "layers")
    (True, False)
    """
    if detail == "full":
        return True
    words = get_args(Detail)
    own = next((kind.detail for kind in SCALARS if kind.names(tag)), "full")
    return words.index(own) <= words.index(detail)
