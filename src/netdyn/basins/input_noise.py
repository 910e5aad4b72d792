"""Where noise falls: on the inputs, or on what named modules put out, as for networks that read token ids.

Noise is drawn row by row, a *row* being one ray of one sample. It is a list: first an entry for each tensor of the
inputs, then one for each site, ``[rows, *shape]``, None where there is no noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from netdyn._utils import checks
from netdyn._utils.random import keys, normals
from netdyn._utils.trees import Inputs, count, leaf_names, map_tensors, take, tensors

Rows = list[Tensor | None]


@dataclass(frozen=True)
class NoisyOutput:
    """One output that noise falls on.

    Attributes:
        name: The module's name.
        run: Which of its runs within a forward pass, from 0.
        dim: The output's dimension that holds the samples.
        shape: Its other dimensions.
    """

    name: str
    run: int
    dim: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Noise:
    """Gaussian noise on inputs or on modules' outputs, seeded by (seed, ray, the sample's content, the place).

    Attributes:
        seed: Seed of the noise.
        inputs: Which tensors of the inputs it falls on.
        by_sample: Which of them have the samples first.
        sites: The outputs that it falls on.
    """

    seed: int
    inputs: tuple[bool, ...]
    by_sample: tuple[bool, ...]
    sites: tuple[NoisyOutput, ...] = ()

    @classmethod
    def at(
        cls, model: nn.Module, inputs: Inputs, by_sample: tuple[bool, ...], names: Sequence[str] | None, seed: int
    ) -> Noise:
        """Noise on the inputs or modules of some names; None: on all floating inputs.

        A name is the path to a part of the inputs (``"image"``, ``"0"``, ``"batch.image"``), or else a module's.

        Raises:
            TypeError: If there is nothing floating there, or ``names`` is no list of strings.
            ValueError: If a name is unknown, a module does not run, or its output does not hold the samples.
        """
        floating = tuple(own and t.is_floating_point() for t, own in zip(tensors(inputs), by_sample, strict=True))
        if names is None:
            if not any(floating):
                raise TypeError(_nothing_floating(model))
            return cls(seed, floating, by_sample)
        checks.names("noise_at", names)
        if not names:
            raise ValueError("`noise_at` must name at least one module or input, got []. Leave it None for all inputs.")
        modules = named_modules(model)
        paths = leaf_names(inputs)
        on_inputs, on_modules = [False] * len(paths), []
        for name in dict.fromkeys(names):
            own = [i for i, path in enumerate(paths) if name and (path == name or path.startswith(f"{name}."))]
            if own and not any(floating[i] for i in own):
                raise TypeError(
                    f"`noise_at` names the input {name!r}, which holds no floating tensor with samples first."
                )
            for i in own:
                on_inputs[i] = floating[i]
            if not own and name in modules:
                on_modules.append(name)
            elif not own:
                known = [*modules, *(path for path in paths if path)]
                raise ValueError(
                    f"`noise_at` names {name!r}, which is no module or input. {checks.nearest(name, known)}"
                )
        return cls(seed, tuple(on_inputs), by_sample, _sites(model, inputs, by_sample, on_modules))

    def components(self, inputs: Inputs) -> int:
        """Numbers that one row of noise consists of."""
        shapes = [tensor.shape[1:] for tensor, here in zip(tensors(inputs), self.inputs, strict=True) if here]
        return sum(math.prod(shape) for shape in [*shapes, *(site.shape for site in self.sites)])

    def draw(self, inputs: Inputs, digests: Tensor, rays: Tensor) -> Rows:
        """The noise of some rows: the digests of their samples, and their rays; any ``inputs`` of their shapes."""

        def rows(place: str, shape: Sequence[int], device: torch.device) -> Tensor:
            key = keys(digests.to(device), self.seed, rays, place)
            return normals(key, math.prod(shape)).reshape(len(key), *shape)

        leaves = tensors(inputs)
        on_inputs = [
            rows(str(place), leaf.shape[1:], leaf.device) if here else None
            for place, (leaf, here) in enumerate(zip(leaves, self.inputs, strict=True))
        ]
        return on_inputs + [rows(f"{site.name}:{site.run}", site.shape, leaves[0].device) for site in self.sites]

    def outputs(
        self,
        model: nn.Module,
        inputs: Inputs,
        rows: Rows,
        sigma: Tensor,
        call: Callable[[Inputs], Any],
    ) -> Any:
        """What ``call`` makes of the inputs under noise of level ``sigma [rows]``; ``model`` holds the modules.

        The inputs stay as they are.
        """
        turn = iter(rows)
        disturbed = disturb(inputs, map_tensors(lambda tensor: next(turn), inputs), sigma)
        if not self.sites:
            return call(disturbed)
        drawn = dict(zip(self.sites, turn, strict=True))
        sites = {(site.name, site.run): site for site in self.sites}

        def add(name: str, run: int, clean: Tensor) -> Tensor:
            site = sites.get((name, run))
            if site is None or clean.shape[site.dim : site.dim + 1] != sigma.shape:
                raise RuntimeError(
                    f"`noise_at` names {name!r}, whose output changed its shape or its number of runs between two "
                    f"forward passes: got shape {list(clean.shape)} in run {run + 1}, for {len(sigma)} samples."
                )
            noise = drawn[site]
            assert noise is not None
            return disturb(clean.movedim(site.dim, 0), noise, sigma).movedim(0, site.dim)  # type: ignore[no-any-return]

        with changed_outputs(model, {site.name for site in self.sites}, add):
            return call(disturbed)


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules by name, without the wrappers' parts that compilation adds."""
    named = {".".join(p for p in name.split(".") if p != "_orig_mod"): m for name, m in model.named_modules()}
    return {name: module for name, module in named.items() if name}


@contextmanager
def changed_outputs(model: nn.Module, names: set[str], change: Callable[[str, int, Tensor], Tensor]) -> Iterator[None]:
    """Inside, the first floating tensor of each named module's output passes through ``change(name, run, tensor)``."""
    runs = dict.fromkeys(names, 0)

    def hook(name: str) -> Callable[..., Any]:
        def changed(module: nn.Module, args: Any, output: Any) -> Any:
            run, done = runs[name], False
            runs[name] += 1

            def once(tensor: Tensor) -> Tensor:
                nonlocal done
                if done or not tensor.is_floating_point():
                    return tensor
                done = True
                return change(name, run, tensor)

            return map_tensors(once, output)

        return changed

    modules = named_modules(model)
    with ExitStack() as undo:
        for name in names:
            undo.callback(modules[name].register_forward_hook(hook(name)).remove)
        yield


def _sites(model: nn.Module, inputs: Inputs, by_sample: Sequence[bool], names: list[str]) -> tuple[NoisyOutput, ...]:
    """The outputs of some modules, in order: found by sending two and then three samples through the network."""
    if not names:
        return ()
    shapes: list[dict[tuple[str, int], tuple[int, ...]]] = []
    for rows in (2, 3):
        met: dict[tuple[str, int], tuple[int, ...]] = {}

        def note(name: str, run: int, clean: Tensor, met: dict[Any, Any] = met) -> Tensor:
            met[name, run] = tuple(clean.shape)
            return clean

        some = take(inputs, torch.arange(rows) % min(rows, count(inputs)), by_sample)
        with changed_outputs(model, set(names), note):
            model(map_tensors(lambda tensor: tensor.clone(), some))
        shapes.append(met)
    two, three = shapes
    for name in names:
        if (name, 0) not in two:
            raise ValueError(
                f"`noise_at` names {name!r}, which put out no floating tensor when the model ran. Name a module that "
                "runs in `forward` and whose output is floating."
            )
    return tuple(_site(*place, shape, three.get(place, ())) for place, shape in two.items())


def _site(name: str, run: int, two: tuple[int, ...], three: tuple[int, ...]) -> NoisyOutput:
    dims = [dim for dim, sizes in enumerate(zip(two, three, strict=False)) if sizes == (2, 3)]
    if (
        len(two) != len(three)
        or len(dims) != 1
        or two[: dims[0]] + two[dims[0] + 1 :] != three[: dims[0]] + three[dims[0] + 1 :]
    ):
        raise ValueError(
            f"`noise_at` names {name!r}, whose output has shape {list(two)} for 2 samples and {list(three)} for 3: "
            "one dimension must be the number of samples, and the others stay. Name another module."
        )
    return NoisyOutput(name, run, dims[0], two[: dims[0]] + two[dims[0] + 1 :])


def _nothing_floating(model: nn.Module) -> str:
    embeddings = [name for name, module in named_modules(model).items() if isinstance(module, nn.Embedding)]
    named = embeddings[0] if embeddings else "embedding"
    return (
        "`inputs` holds no floating tensor that noise could disturb. Name the modules whose output it is to disturb "
        f"instead, for instance noise_at=[{named!r}]."
    )


def disturb(inputs: Inputs, noise: Inputs, sigma: Tensor) -> Inputs:
    """``inputs + sigma * noise`` with one noise level per sample, ``sigma [samples]``; computed in float32 or better.

    The result shares no memory with the inputs: the network may write over it, and they are needed again.
    """

    def add(clean: Tensor, drawn: Tensor | None) -> Tensor:
        if drawn is None:
            return clean.detach().clone()
        wide = torch.promote_types(clean.dtype, torch.float32)
        level = sigma.to(clean.device, wide).reshape(-1, *[1] * (clean.ndim - 1))
        return (clean.detach().to(wide) + level * drawn.to(wide)).to(clean.dtype)

    return map_tensors(add, inputs, noise)
