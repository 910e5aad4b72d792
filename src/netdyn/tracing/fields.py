"""Choose layers, and read their local fields."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from netdyn._utils.checks import nearest
from netdyn._utils.trees import Inputs
from netdyn.isolation.isolated import isolated
from netdyn.tracing.names import clean_name
from netdyn.tracing.sample_axis import SampleAxis
from netdyn.tracing.site import Key, Site
from netdyn.tracing.survey import Survey, discover
from netdyn.tracing.tracer import run


def local_fields(model: nn.Module, inputs: Inputs, layers: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Read the local field (the input of the activation function) of every unit, for every sample.

    Args:
        model: Any eager PyTorch module; called as ``model(inputs)``.
        inputs: A tensor, or a sequence or mapping of tensors, samples first.
        layers: Names or globs of layers to read, or names of modules whose outputs are to count as local fields (a
            linear network has no activation). None: all that activations read.

    Returns:
        Layer name → ``[samples, units]``, in order of execution. A layer is called after the module whose output the
        local field is (``encoder.0.fc1``; ``:1``, ``:2`` where it runs again), else after the innermost module running.

    Raises:
        ValueError: If a layer matches nothing, or there is no activation.

    Source:
        P1, local field; after any normalisation layer.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> {name: list(field.shape) for name, field in local_fields(net, torch.zeros(5, 2)).items()}
        {'0': [5, 3]}
    """
    fields: dict[str, Tensor] = {}
    with isolated(model):
        choice = choose(model, discover(model, inputs), layers)
        read(model, inputs, lambda name, field, _: fields.update({name: field.clone()}), choice)
    return fields


@dataclass(frozen=True)
class Choice:
    """What is to be read in a network.

    Attributes:
        names: The layers.
        promoted: Names of modules whose output counts as a local field.
        axes: As in :class:`Survey`.
    """

    names: tuple[str, ...] = ()
    promoted: tuple[str, ...] = ()
    axes: Mapping[Key, SampleAxis | None] = field(default_factory=dict)

    def wants(self, name: str) -> bool:
        """Whether a layer of this name is one of them."""
        return name in self.names or name.split(":")[0] in self.promoted

    def holds(self, site: Site) -> bool:
        """Whether a local field is one of them."""
        return site.name in self.names or (site.key[0] == "output" and site.name.split(":")[0] in self.promoted)


def choose(model: nn.Module, survey: Survey, layers: Sequence[str] | None) -> Choice:
    """What ``layers=`` asks for.

    Args:
        model: The network.
        survey: What there is.
        layers: Names or globs, or None for all that was found.

    Returns:
        The layers to keep, and the modules whose output is to count as a local field: a pattern that matches a found
        local field means that field, only one that matches none means modules.

    Raises:
        TypeError: If ``layers`` is a single string.
        ValueError: If a pattern matches nothing, or there is nothing to read.
    """
    found = list(survey.found)
    modules = [clean_name(name) for name, _ in model.named_modules() if name]
    if isinstance(layers, str):
        raise TypeError(f"`layers` must be a list of names or globs, got the string {layers!r}.")
    if layers is None:
        if not found:
            if survey.mixed:
                raise ValueError(
                    f"Samples cannot be told apart in what the activations of {list(survey.mixed)} read, and there are "
                    f"no others: no local field to read. Name modules in `layers=`, for instance {modules[:3]}."
                )
            raise ValueError(
                "No activation function was seen, so there is no local field to read. For a linear network name the "
                f"modules whose outputs are to count in `layers=`, for instance {modules[:3]}."
            )
        return Choice(tuple(found), (), survey.axes)
    kept: list[str] = []
    promoted: list[str] = []
    for pattern in layers:
        if pattern in found:
            kept.append(pattern)
        elif pattern in modules:
            promoted += _seen(survey, pattern, [pattern])
        elif matches := fnmatch.filter(found, pattern):
            kept += matches
        elif matches := fnmatch.filter(modules, pattern):
            promoted += _seen(survey, pattern, matches)
        else:
            raise ValueError(
                f"`layers` names {pattern!r}, which matches nothing. {nearest(pattern, [*found, *modules])}"
            )
    return Choice(tuple(kept + promoted), tuple(promoted), survey.axes)


def _seen(survey: Survey, pattern: str, modules: list[str]) -> list[str]:
    """The modules whose outputs can be read.

    Raises:
        ValueError: If there is none among them.
    """
    if seen := [name for name in modules if name in survey.outputs]:
        return seen
    raise ValueError(
        f"`layers` names {pattern!r}, but no output of {modules} was seen that holds samples: they do not run as "
        "modules, as the parts of torch's attention do not, or say the same for all. Name a module around them. "
        f"{nearest(pattern, survey.outputs)}"
    )


def read(
    model: nn.Module, inputs: Inputs, on_layer: Callable[[str, Tensor, Tensor], None], choice: Choice
) -> tuple[Any, Any]:
    """Hand over ``name``, field and output ``[samples, units]`` of the chosen layers.

    Returns:
        The model's output and the logits, as :func:`run`.
    """

    def visit(site: Site) -> None:
        if choice.holds(site):
            on_layer(site.name, site.axis.rows(site.field), site.axis.rows(site.output))

    return run(model, inputs, visit, promoted=choice.promoted, axes=choice.axes)
