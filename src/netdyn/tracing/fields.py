"""Choose layers, and read their local fields."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from netdyn._utils.checks import nearest, split_patterns, warn, without
from netdyn._utils.trees import Inputs, count, samples_first, take
from netdyn.isolation.adapter import isolated_network
from netdyn.tracing.activations import is_activation
from netdyn.tracing.names import clean_name, is_quantised
from netdyn.tracing.rows import OUTPUTS, Rows, Verdict, coarsest_rounding, compare, other_parts
from netdyn.tracing.sample_axis import SampleAxis
from netdyn.tracing.site import Axes, Key, Site, Unread
from netdyn.tracing.survey import Survey, survey
from netdyn.tracing.tracer import run


def local_fields(model: nn.Module, inputs: Inputs, layers: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Read the local field (the input of the activation function) of every unit, for every sample.

    Args:
        model: Any eager PyTorch module; called with the inputs as its ``forward`` takes them.
        inputs: A tensor, or a sequence or mapping of tensors, samples first.
        layers: Names or globs of layers to read, or of modules whose outputs are to count as local fields (a linear
            network has no activation). A pattern that begins with ``!`` excludes: ``["!head.*"]``. None: every input of
            an activation.

    Returns:
        Layer name → ``[samples, units]``, in order of execution. A layer has the name of the module whose output the
        local field is (``encoder.0.fc1``; with ``:1``, ``:2`` for further runs), or of the innermost running module.

    Raises:
        TypeError: If ``layers`` is a single string.
        ValueError: If a name in ``layers`` matches nothing, or there is no activation.

    Source:
        P1, local field; after any normalisation layer.

    Examples:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> {name: list(field.shape) for name, field in local_fields(net, torch.zeros(5, 2)).items()}
        {'0': [5, 3]}
    """
    fields: dict[str, Tensor] = {}
    with isolated_network(model) as network:
        choice = choose(network, discover(network, inputs, layers), layers)
        read(network, inputs, lambda name, field, _: fields.update({name: field.clone()}), choice)
    return fields


#: Most samples per pass where no batch size is given and only rows are compared.
MOST_SAMPLES = 1024


@dataclass(frozen=True)
class Choice:
    """What to read in a network: layers, among them modules whose outputs count as local fields (promoted)."""

    names: tuple[str, ...] = ()
    promoted: tuple[str, ...] = ()
    axes: Axes = field(default_factory=dict)

    def wants(self, name: str) -> bool:
        """Whether a layer of this name is to be read."""
        return name in self.names or name.split(":")[0] in self.promoted

    def holds(self, site: Site) -> bool:
        """Whether a local field is to be read."""
        return site.name in self.names or (site.key[0] == "output" and site.name.split(":")[0] in self.promoted)

    def missing(self, found: Collection[str]) -> list[str]:
        """The chosen layers that are not among some names."""
        bases = {name.split(":")[0] for name in found}
        return [name for name in self.names if name not in found and not (name in self.promoted and name in bases)]


def choose(model: nn.Module, survey: Survey, layers: Sequence[str] | None) -> Choice:
    """What ``layers`` selects. A pattern stands for modules only if it matches no local field of the survey."""
    found = list(survey.found)
    modules = [clean_name(name) for name, _ in model.named_modules() if name]
    if isinstance(layers, str):
        raise TypeError(f"`layers` must be a list of names or globs, got {layers!r}. Write layers=[{layers!r}].")
    choosing, excluding = split_patterns(layers)
    if choosing is None and not found:
        _refuse_nothing(modules, _names(survey.mixed), sorted(survey.unknown))
    activations = {clean_name(name) for name, module in model.named_modules() if is_activation(module)}
    names, promoted = found, list[str]()
    if choosing is not None:
        names, promoted = _matching(choosing, found, modules, activations, survey.outputs)
    if excluding:
        left = without("layers", names + promoted, excluding, [*found, *promoted], "layer")
        names, promoted = [each for each in names if each in left], [each for each in promoted if each in left]
    return Choice(tuple(names + promoted), tuple(promoted), survey.axes)


def _refuse_nothing(modules: list[str], mixed: list[str], unknown: list[str]) -> NoReturn:
    """Raise the error for a network without any local field."""
    if unknown:
        raise ValueError(
            f"No activation function was found, but functions of the outputs of {unknown} that may be activations: "
            "write each as a module of its own, and register its class with `netdyn.functional.register_activation`."
        )
    if mixed:
        others = f" Name modules in `layers=`, for instance {modules[:3]}." if modules else ""
        raise ValueError(
            f"The samples cannot be told apart in the inputs of the activations of {mixed}, and there are no others, "
            f"so there is no local field to read.{others}"
        )
    if not modules:
        raise ValueError(
            "No activation function was found, so there is no local field to read. The model is a single module: to "
            "read its output, wrap it in `nn.Sequential` and pass `layers=['0']`."
        )
    raise ValueError(
        "No activation function was found, so there is no local field to read. For a linear network, name in `layers=` "
        f"the modules whose outputs are to count as local fields, for instance {modules[:3]}. For an activation of "
        "your own see `netdyn.functional.register_activation`."
    )


def _matching(
    patterns: Sequence[str], found: list[str], modules: list[str], activations: set[str], outputs: frozenset[str]
) -> tuple[list[str], list[str]]:
    """The local fields that patterns choose, and the modules whose outputs are to count as local fields."""
    names: list[str] = []
    promoted: list[str] = []
    for pattern in patterns:
        if pattern in found:
            names.append(pattern)
            continue
        if pattern not in modules and (matches := fnmatch.filter(found, pattern)):
            names += matches
            continue
        matches = [pattern] if pattern in modules else fnmatch.filter(modules, pattern)
        if pattern in activations:
            raise ValueError(
                f"`layers` names {pattern!r}, which is an activation: a layer has the name of the module whose output "
                f"the activation reads. The layers here are {found[:5]}{', …' * (len(found) > 5)}."
            )
        if not matches:
            raise ValueError(
                f"`layers` names {pattern!r}, which matches nothing. {nearest(pattern, [*found, *modules])}"
            )
        readable = [name for name in matches if name in outputs]
        if not readable:
            raise ValueError(
                f"`layers` names {pattern!r}, but no output of {matches} holds samples: these modules are not called "
                "(like the parts of torch's attention), or their output is the same for all samples. Name a module "
                f"around them. {nearest(pattern, outputs)}"
            )
        promoted += readable
    return names, promoted


def read(
    model: nn.Module,
    inputs: Inputs,
    on_layer: Callable[[str, Tensor, Tensor], None],
    choice: Choice,
    rows: Rows | None = None,  # takes the rows of the fields and outputs
    samples: Tensor | None = None,  # which samples of the probe these are, for ``rows``
    layout: Callable[[SampleAxis, Tensor], Tensor] = SampleAxis.rows,
) -> tuple[Any, Any]:
    """A run's output and logits; ``on_layer`` gets each chosen layer's name, field and output.

    These are ``[samples, units]``, or what ``layout(axis, value)`` makes of them.
    """

    def visit(site: Site) -> None:
        if choice.holds(site):
            if rows is not None:
                rows.add(site.key, site.axis.rows(site.field))
            on_layer(site.name, layout(site.axis, site.field), layout(site.axis, site.output))

    if rows is not None and samples is not None:
        rows.begin(samples)
    unread = None if rows is None else rows.unread
    found = run(model, inputs, visit, promoted=choice.promoted, axes=choice.axes, unread=unread)
    if rows is not None:
        rows.add_outputs(found[0])
    return found


class OtherRun:
    """A run of all samples, or of a few, in another order and in other company than those of the reading."""

    def __init__(
        self, model: nn.Module, inputs: Inputs, choice: Choice, batch_size: int | None = None, few: bool = False
    ) -> None:
        self.model, self.inputs, self.choice = model, inputs, choice
        self.parts = other_parts(count(inputs), batch_size, few)
        try:
            self.rows = rows_of(model, inputs, choice, self.parts)
        except Exception as error:
            # Packed sequences may have to come in the order of their lengths: the same company, in the probe's order.
            if "sorted" not in str(error):
                raise
            self.parts = [part.sort().values for part in self.parts]
            self.rows = rows_of(model, inputs, choice, self.parts)

    def judge(self, whole: Rows, agree: Callable[[Callable[[], Verdict]], Verdict] = lambda work: work()) -> Verdict:
        """How the rows of the reading differ from those here; ``agree`` gives several processes the same answer."""
        coarsest = coarsest_rounding(self.model, self.inputs)
        verdict = agree(lambda: compare(whole, self.rows, coarsest))
        if verdict.moved:
            # What differs between runs of the same batch is random, or a counter's, and depends on no other sample.
            again, last = (rows_of(self.model, self.inputs, self.choice, self.parts[-1:]) for _ in range(2))
            verdict = verdict.without(agree(lambda: compare(self.rows, again, coarsest)))
            verdict = verdict.without(agree(lambda: compare(again, last, coarsest, alike=True)))
        return Verdict(verdict.refused | whole.seen_apart(self.rows), verdict.moved)


def rows_of(
    model: nn.Module, inputs: Inputs, choice: Choice, parts: Sequence[Tensor], unread: Unread | None = None
) -> Rows:
    """The rows of a run of some samples, batch by batch."""
    rows = Rows(torch.cat(list(parts)).sort().values, unread)
    by_sample = samples_first(inputs)
    for part in parts:
        read(model, take(inputs, part, by_sample), lambda *layer: None, choice, rows, part)
    return rows


def discover(
    model: nn.Module, inputs: Inputs, layers: Sequence[str] | None = None, batch_size: int | None = None
) -> Survey:
    """Survey a network; leave out local fields whose rows are not their samples' own, and name all that is not read.

    Two whole runs of the samples, in different orders and company, must agree row by row.
    """
    found = survey(model, inputs)
    try:
        choice = choose(model, found, layers)
    except ValueError:
        # Nothing can be chosen: that is for the caller to say, after this warning.
        warn_of_unread(model, found, found.mixed)
        return found
    size = batch_size or MOST_SAMPLES
    other = OtherRun(model, inputs, choice, size)
    parts = torch.split(torch.arange(count(inputs)), size)
    rows = rows_of(model, inputs, choice, parts, other.rows.unread)
    verdict = other.judge(rows)
    warn_of_unread(model, found, found.mixed | rows.unread.keys | verdict.refused)
    warn_of_company(verdict)
    return found.without(verdict.refused | rows.unread.keys)


def warn_of_unread(model: nn.Module, found: Survey, unread: Collection[Key]) -> None:
    """Warn once, with the names of all that cannot be read."""
    scripted = [name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    hidden = {
        "are TorchScript": [n for n in scripted if n.rpartition(".")[0] not in scripted],
        "are quantised": [n for n, m in model.named_modules() if is_quantised(m) and not n.endswith("._packed_params")],
        **found.hidden,
        "mix or sort the samples of a batch, or see only some": _names(unread),
        "lead to weights through functions that are no known activations (register these with "
        "`netdyn.functional.register_activation`)": sorted(found.unknown),
    }
    reasons = "; ".join(f"the modules {names} {what}" for what, names in hidden.items() if names)
    if reasons:
        warn(
            f"Not all of the network can be read: {reasons}. The local fields inside are left out, and so are layers "
            "from which no gradient reaches the output."
        )


def _names(keys: Collection[Key]) -> list[str]:
    return sorted({name for _, name, _ in keys})


def warn_of_company(verdict: Verdict) -> None:
    """Warn of a network whose outputs or local fields depend on the other samples of a batch."""
    if moved := verdict.moved - verdict.refused:
        first = "its outputs depend" if OUTPUTS in moved else "its local fields depend"
        warn(
            f"The network mixes the samples of a batch: {first} on the other samples that run with one. Every number "
            "here is that of the probe in the batches in which it runs, and another `batch_size` gives other ones."
        )
