"""Find a network's local fields and read them.

A survey runs the network with two samples and with three: it finds the local fields, names them, and finds out where
in each the samples are. What it found is what later runs read.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from netdyn._utils.checks import nearest, warn
from netdyn._utils.doubts import Doubts, Question
from netdyn._utils.trees import Inputs, count, spread, take
from netdyn.tracing.names import clean_name, is_quantised, numbered
from netdyn.tracing.sample_axis import Layout, best, evidence, own_places, possible
from netdyn.tracing.tracer import Key, Site, Watch, watching

__all__ = ["Choice", "Site", "Survey", "choose", "discover", "read", "run", "survey", "warn_of_unread"]


@dataclass(frozen=True)
class Survey:
    """What there is to read in a network.

    Attributes:
        found: Names of the local fields that activations read, in order of execution, each with its key.
        layouts: Where the samples are in the tensors of a run; None for those that have none.
        outputs: Names of the modules whose outputs were seen.
        probabilities: Whether the network's outputs are probabilities.
        pooled: Names of the local fields that a max-pooling follows.
        mixed: Names of what an activation read in which samples cannot be told apart.
        packed: Names of the modules that ran on packed sequences.
    """

    found: Mapping[str, Key]
    layouts: Mapping[Key, Layout | None]
    outputs: frozenset[str]
    probabilities: bool
    pooled: frozenset[str]
    mixed: tuple[str, ...] = ()
    packed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Choice:
    """What is to be read in a network.

    Attributes:
        names: The layers.
        promoted: Names of modules whose output counts as a local field.
        layouts: As in :class:`Survey`.
    """

    names: tuple[str, ...] = ()
    promoted: tuple[str, ...] = ()
    layouts: Mapping[Key, Layout | None] = field(default_factory=dict)

    def wants(self, name: str) -> bool:
        """Whether a layer of this name is one of them."""
        return name in self.names or name.split(":")[0] in self.promoted

    def holds(self, site: Site) -> bool:
        """Whether a local field is one of them."""
        return site.name in self.names or (site.key[0] == "output" and site.name.split(":")[0] in self.promoted)


def run(
    model: nn.Module,
    inputs: Inputs,
    on_site: Callable[[Site], None],
    *,
    straight: bool = False,
    promoted: Iterable[str] = (),
    layouts: Mapping[Key, Layout | None] | None = None,
    linear: Iterable[Key] = (),
) -> tuple[Any, Any]:
    """Run the network once and hand over its local fields, in order of execution.

    Args:
        model: The network, in eval mode.
        inputs: A batch of inputs.
        on_site: Called with each local field.
        straight: Let the backward pass of an activation be the identity, and that of max-pooling an average's.
        promoted: Names of modules whose outputs count as local fields.
        layouts: Where the samples are in the run's tensors; first, where it does not say.
        linear: Local fields whose activation is left out.

    Returns:
        The model's output, and the logits: another tensor where a sigmoid, softmax or log_softmax ends the network.
    """
    options: dict[str, Any] = {"straight": straight, "promoted": promoted, "linear": linear}
    watch = Watch(model, count(inputs), on_site, layouts=layouts or {}, **options)
    with watching(watch, model, inputs) as results:
        return results


#: Samples of the run that checks what two and three have shown.
CHECKED = 16


def discover(model: nn.Module, inputs: Inputs, check: bool = True) -> Survey:
    """Find a network's local fields, and say what cannot be read; see :func:`survey`."""
    found = survey(model, inputs, Doubts(None), check)
    warn_of_unread(model, found)
    return found


def survey(model: nn.Module, inputs: Inputs, doubts: Doubts, check: bool = True) -> Survey:
    """Find a network's local fields; runs two samples, and three, and to ``check`` these with others.

    Where the samples are in a tensor shows in its values alone. ``doubts`` says whether these are read at once: a
    survey that rests on what was assumed holds if that turns out to be justified.

    Raises:
        ValueError: If there is no sample.
    """
    samples = count(inputs)
    if samples == 0:
        raise ValueError("`inputs` must hold at least one sample, got none.")
    chosen = spread(samples, 3) if samples > 2 else torch.arange(3).clamp(max=samples - 1)
    sites: list[Site] = []
    seen: list[dict[Key, Tensor]] = []
    refused: set[Key] = set()
    for number in (2, 3):
        sites.clear()
        watch = Watch(model, number, sites.append, layouts=None, doubts=doubts)
        with watching(watch, model, take(inputs, chosen[:number])) as (output, logits):
            seen.append(watch.seen)
        refused |= watch.refused
    layouts, mixed = _layouts(seen[0], seen[1], doubts)
    layouts |= dict.fromkeys(refused)
    if check and samples > 3:
        wrong = _displaced(model, inputs, chosen, layouts, seen[1], doubts)
        layouts |= dict.fromkeys(wrong)
        mixed = sorted({*mixed, *(key[1] for key in wrong)})
    found: dict[str, Key] = {}
    pooled: set[str] = set()
    runs: Counter[str] = Counter()
    for number, site in enumerate(sites):
        if layouts.get(site.key) is None:
            continue
        name = numbered(site.name, runs[site.name])
        runs[site.name] += 1
        found[name] = site.key
        if number < watch.pooled:
            pooled.add(name)
    outputs = frozenset(key[1] for key in watch.seen if key[0] == "output" and layouts.get(key) is not None)
    return Survey(
        found, layouts, outputs, logits is not output, frozenset(pooled), tuple(mixed), frozenset(watch.packed)
    )


def _displaced(
    model: nn.Module,
    inputs: Inputs,
    chosen: Tensor,
    layouts: Mapping[Key, Layout | None],
    seen: Mapping[Key, Tensor],
    doubts: Doubts,
) -> list[Key]:
    """The local fields that do not hold every sample in its place, when three known ones run among others.

    Networks that sort their batch, or send each sample another way, can look orderly with three.
    """
    wrong: list[Key] = []
    kept: dict[Key, Tensor] = {}
    among = torch.cat([chosen, spread(count(inputs), CHECKED)])

    def visit(site: Site) -> None:
        if site.key not in seen:
            return
        rows, known = site.layout.rows(site.field), site.layout.rows(seen[site.key])
        if len(rows) != len(among):
            wrong.append(site.key)
        elif rows.shape[1:] == known.shape[1:]:
            kept[site.key] = own_places(known, rows)

    run(model, take(inputs, among), visit, layouts=layouts)
    questions = [
        Question(("in place", key), [own], (True, False), lambda found: bool(found[0][0])) for key, own in kept.items()
    ]
    return wrong + [key for key, in_place in zip(kept, doubts.ask(questions), strict=True) if not in_place]


def _layouts(
    two: Mapping[Key, Tensor], three: Mapping[Key, Tensor], doubts: Doubts
) -> tuple[dict[Key, Layout | None], list[str]]:
    """Layouts of what both runs have seen, and the names of the modules whose samples cannot be told apart."""
    layouts: dict[Key, Layout | None] = {}
    questions: dict[Key, Question] = {}
    unclear: set[Key] = set()
    for key in two.keys() & three.keys():
        layouts[key] = None
        try:
            some = possible(two[key], three[key])
        except ValueError:
            unclear.add(key)
            continue
        if some:
            found = [evidence(each, two[key], three[key]) for each in some]
            questions[key] = Question(("layout", key), found, (*some, None), partial(best, some))
    layouts |= zip(questions, doubts.ask(list(questions.values())), strict=True)
    unclear |= {key for key in questions if layouts[key] is None}
    return layouts, sorted({key[1] for key in unclear if key[0] == "call"})


def warn_of_unread(model: nn.Module, survey: Survey) -> None:
    """One warning that names what is hidden from us."""
    hidden = {
        "are TorchScript": [n for n, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule)],
        "are quantised": [n for n, m in model.named_modules() if is_quantised(m) and not n.endswith("._packed_params")],
        "run on packed sequences": sorted(survey.packed),
        "mix or sort the samples of a batch, or see only some": list(survey.mixed),
    }
    said = "; ".join(f"the modules {names} {what}" for what, names in hidden.items() if names)
    if said:
        warn(
            f"Not all of the network can be read: {said}. The local fields inside are left out, and so are layers from "
            "which no gradient reaches the output."
        )


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
        return Choice(tuple(found), (), survey.layouts)
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
    return Choice(tuple(kept + promoted), tuple(promoted), survey.layouts)


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
            on_layer(site.name, site.layout.rows(site.field), site.layout.rows(site.output))

    return run(model, inputs, visit, promoted=choice.promoted, layouts=choice.layouts)
