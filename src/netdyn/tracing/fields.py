"""Choose layers, and read their local fields."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from torch import Tensor, nn

from netdyn._utils.checks import nearest, split_patterns, without
from netdyn._utils.trees import Inputs
from netdyn.isolation.adapter import isolated_network
from netdyn.tracing.names import clean_name
from netdyn.tracing.site import Axes, Site
from netdyn.tracing.survey import Survey, discover
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

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> {name: list(field.shape) for name, field in local_fields(net, torch.zeros(5, 2)).items()}
        {'0': [5, 3]}
    """
    fields: dict[str, Tensor] = {}
    with isolated_network(model) as network:
        choice = choose(network, discover(network, inputs), layers)
        read(network, inputs, lambda name, field, _: fields.update({name: field.clone()}), choice)
    return fields


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


def choose(model: nn.Module, survey: Survey, layers: Sequence[str] | None) -> Choice:
    """What ``layers`` selects. A pattern stands for modules only if it matches no local field of the survey."""
    found = list(survey.found)
    modules = [clean_name(name) for name, _ in model.named_modules() if name]
    if isinstance(layers, str):
        raise TypeError(f"`layers` must be a list of names or globs, got {layers!r}. Write layers=[{layers!r}].")
    choosing, excluding = split_patterns(layers)
    if choosing is None and not found:
        _refuse_nothing(modules, survey.mixed)
    names, promoted = (found, []) if choosing is None else _matching(choosing, found, modules, survey.outputs)
    if excluding:
        left = without("layers", names + promoted, excluding, [*found, *promoted], "layer")
        names, promoted = [each for each in names if each in left], [each for each in promoted if each in left]
    return Choice(tuple(names + promoted), tuple(promoted), survey.axes)


def _refuse_nothing(modules: list[str], mixed: Sequence[str]) -> NoReturn:
    """Raise the error for a network without any local field."""
    why = "No activation function was found"
    if mixed:
        why = f"The samples cannot be told apart in the inputs of the activations of {list(mixed)}, the only ones"
    if not modules:
        raise ValueError(
            f"{why}, so there is no local field to read. The model is a single module: to read its output, wrap it in "
            "`nn.Sequential` and pass `layers=['0']`."
        )
    raise ValueError(
        f"{why}, so there is no local field to read. For a linear network, name in `layers=` the modules whose outputs "
        f"are to count as local fields, for instance {modules[:3]}."
    )


def _matching(
    patterns: Sequence[str], found: list[str], modules: list[str], outputs: frozenset[str]
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
    model: nn.Module, inputs: Inputs, on_layer: Callable[[str, Tensor, Tensor], None], choice: Choice
) -> tuple[Any, Any]:
    """A run's output and logits; ``on_layer`` gets each chosen layer's name, field and output ``[samples, units]``."""

    def visit(site: Site) -> None:
        if choice.holds(site):
            on_layer(site.name, site.axis.rows(site.field), site.axis.rows(site.output))

    return run(model, inputs, visit, promoted=choice.promoted, axes=choice.axes)
