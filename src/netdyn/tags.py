"""The table of tags: what is logged under which name, in which unit, and what it means."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tag:
    """One kind of curve or histogram; ``<layer>``, ``<k>`` and ``<tensor>`` in its name stand for what varies."""

    name: str
    unit: str
    meaning: str


SCALARS = (
    Tag("modes/opt_fraction/<layer>", "share, 0 to 1", "units that preserve the order of the samples"),
    Tag("modes/npt_fraction/<layer>", "share, 0 to 1", "units that do not"),
    Tag("modes/constant_fraction/<layer>", "share, 0 to 1", "units with the same local field for every sample"),
    Tag("modes/rpd_gradient/<layer>", "slope, ±6(1 − 1/K)", "how far a layer lifts a class where it lifts its logit"),
    Tag(
        "modes/transfer_order/<layer>",
        "share, 0 to 1",
        "pairs of samples whose order the activation keeps, mean over units",
    ),
    Tag("phase/index", "−1 to 1", "whether order rises from layer to layer (phase II) or falls (phase I)"),
    Tag("phase/spread", "slope, 0 to 12(1 − 1/K)", "largest minus smallest RPD gradient of the layers"),
    Tag("phase/mean", "slope, ±6(1 − 1/K)", "mean RPD gradient of the layers"),
    Tag(
        "linear/tail_accuracy/<layer>",
        "share, 0 to 1",
        "accuracy when every activation from this layer upward is the identity",
    ),
    Tag("linear/share/<layer>", "share, 0 to 1", "squared correlation of the logits with those of that linear tail"),
    Tag("linear/functional_depth", "layers", "first layer from which on the network acts linearly"),
    Tag("linear/affine_defect/<layer>", "share, 0 to 1", "how much of the layer's pathway depends on the sample"),
    Tag("basin/sample/radius", "σ per input component", "noise on the inputs at which accuracy falls to its target"),
    Tag("basin/sample/low", "σ per input component", "lower end of the radius's 95 % interval"),
    Tag("basin/sample/high", "σ per input component", "upper end of it"),
    Tag("basin/sample/censored", "share, 0 to 1", "samples still right at the highest noise level"),
    Tag("basin/sample/class_radius/<k>", "σ per input component", "the radius over one class's samples"),
    Tag("coverage/own", "share, 0 to 1", "validation samples that the answer for the nearest training sample reaches"),
    Tag("coverage/other", "share, 0 to 1", "the same with the nearest training sample of another class"),
    Tag("coverage/distance", "σ per input component", "median distance of validation from training samples"),
    Tag("basin/weight/radius", "standard deviations of each weight tensor", "noise on the weights that does the same"),
    Tag(
        "basin/weight/low", "standard deviations of each weight tensor", "lower end of the radius's interval over rays"
    ),
    Tag("basin/weight/high", "standard deviations of each weight tensor", "upper end of it"),
    Tag("basin/weight/censored", "share, 0 to 1", "rays still above the target at the highest noise level"),
    Tag(
        "basin/weight/layer_radius/<tensor>",
        "standard deviations of the tensor",
        "the radius when it alone is disturbed",
    ),
    Tag(
        "batchnorm/gap",
        "share, −1 to 1",
        "accuracy with the statistics of a batch minus accuracy with the running ones",
    ),
    Tag("probe/accuracy", "share, 0 to 1", "accuracy on the probe, in eval mode"),
    Tag("probe/val_accuracy", "share, 0 to 1", "accuracy on the probe from the validation data"),
    Tag("netdyn/seconds", "seconds", "duration of this evaluation"),
    Tag("netdyn/overhead", "share", "time spent in evaluations, in units of the time spent training"),
    Tag("netdyn/skipped", "count", "evaluations left out so far, for their cost or because they failed"),
)

HISTOGRAMS = (
    Tag("modes/order_index/<layer>", "−1 to 1", "agreement of tuning and wiring, unit by unit"),
    Tag("modes/alignment/<layer>", "standard deviations", "the same, in units of its spread under random wiring"),
    Tag("basin/sample/radii", "log₁₀ σ", "noise level at which each ray is lost"),
    Tag("basin/weight/radii", "log₁₀ σ", "noise level at which each ray is lost"),
)

FIGURES = (
    Tag("modes/rpd", "density", "rank probability distribution, one curve a layer"),
    Tag("modes/map", "layer × step", "share of order-preserving units over the run"),
    Tag("modes/gradient_map", "layer × step", "RPD gradient over the run"),
    Tag("linear/tail", "share, 0 to 1", "accuracy of the linear tail against the layer from which it begins"),
    Tag("linear/map", "layer × step", "accuracy of the linear tail over the run"),
    Tag("basin/curves", "share, 0 to 1", "accuracy against noise, one line a class, the radius with its interval"),
    Tag("wpa/characteristic_maps", "logit per input", "what each logit looks at once activations are gone"),
    Tag("wpa/subnetwork", "logit per input", "the first layer's units that carry most of each logit, and their maps"),
)
