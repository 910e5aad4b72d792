"""Noise on the inputs, or on what named modules put out, as for networks that read token ids."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from netdyn._utils import checks
from netdyn._utils.inputs import shown
from netdyn._utils.options import instead
from netdyn._utils.random import keys, normals
from netdyn._utils.trees import Inputs, count, leaf_names, map_tensors, open_to_noise, take, tensors

#: Noise for some rows, each one ray of one sample: an entry ``[rows, *shape]`` for each tensor of the inputs, then for
#: each site; None where there is no noise.
Rows = list[Tensor | None]


class NoisyOutput(NamedTuple):
    """One output that noise falls on."""

    name: str
    run: int  # of the module within a forward pass, from 0
    dim: int  # that holds the samples
    shape: tuple[int, ...]  # of one sample


@dataclass(frozen=True)
class Noise:
    """Gaussian noise on inputs or on modules' outputs, seeded by (seed, ray, the sample's content, the place)."""

    seed: int
    inputs: tuple[bool, ...]  # which tensors of the inputs it falls on
    sites: tuple[NoisyOutput, ...] = ()

    @classmethod
    def at(
        cls, model: nn.Module, inputs: Inputs, by_sample: tuple[bool, ...], names: Sequence[str] | None, seed: int
    ) -> Noise:
        """Noise on parts of the inputs, named by path (``"batch.image"``), or else on modules.

        None: all floating inputs; without any, the output of the embedding that runs first.
        """
        if names is None:
            on_inputs = open_to_noise(inputs, by_sample)
            return cls(seed, on_inputs, () if any(on_inputs) else _on_embedding(model, inputs, by_sample))
        checks.names("noise_at", names, of="names of modules or inputs")
        if not names:
            raise ValueError("`noise_at` must name at least one module or input, got []. Leave it None for all inputs.")
        floating = tuple(own and t.is_floating_point() for t, own in zip(tensors(inputs), by_sample, strict=True))
        modules, paths = named_modules(model), leaf_names(inputs)
        chosen, on_modules = set[int](), []
        for name in dict.fromkeys(names):
            own = {i for i, path in enumerate(paths) if name and (path == name or path.startswith(f"{name}."))}
            if own and not any(floating[i] for i in own):
                raise TypeError(
                    f"`noise_at` names the input {name!r}, which holds no floating tensor with samples first."
                )
            if not own and name not in modules:
                near = checks.nearest(name, [*modules, *filter(None, paths)])
                raise ValueError(f"`noise_at` names {name!r}, which is no module or input. {near}")
            chosen |= own
            if not own:
                on_modules.append(name)
        on_inputs = tuple(here and i in chosen for i, here in enumerate(floating))
        return cls(seed, on_inputs, _sites(model, inputs, by_sample, on_modules))

    def components(self, inputs: Inputs) -> int:
        """Numbers that one row of noise consists of."""
        shapes = [tensor.shape[1:] for tensor, here in zip(tensors(inputs), self.inputs, strict=True) if here]
        return sum(math.prod(shape) for shape in [*shapes, *(site.shape for site in self.sites)])

    def draw(self, inputs: Inputs, digests: Tensor, rays: Tensor) -> Rows:
        """The noise of rows with these digests and rays; of ``inputs`` only shapes and devices matter."""

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
        self, model: nn.Module, inputs: Inputs, rows: Rows, sigma: Tensor, call: Callable[[Inputs], Any]
    ) -> Any:
        """What ``call`` makes of a copy of the inputs under noise of level ``sigma [rows]``."""
        turn = iter(rows)
        disturbed = disturb(inputs, map_tensors(lambda tensor: next(turn), inputs), sigma)
        if not self.sites:
            return call(disturbed)
        drawn = {(site.name, site.run): (site.dim, noise) for site, noise in zip(self.sites, turn, strict=True)}

        def add(name: str, run: int, clean: Tensor) -> Tensor:
            dim, noise = drawn.get((name, run), (0, None))
            if noise is None or clean.shape[dim : dim + 1] != sigma.shape:
                raise RuntimeError(
                    f"`noise_at` names {name!r}, whose output changed its shape or its number of runs between two "
                    f"forward passes: got shape {list(clean.shape)} in run {run + 1}, for {len(sigma)} samples."
                )
            return disturb(clean.movedim(dim, 0), noise, sigma).movedim(0, dim)  # type: ignore[no-any-return]

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

    def changed(name: str, output: Any) -> Any:
        run, done = runs[name], False
        runs[name] += 1

        def once(tensor: Tensor) -> Tensor:
            nonlocal done
            if done or not tensor.is_floating_point():
                return tensor
            done = True
            return change(name, run, tensor)

        return map_tensors(once, output)

    modules = named_modules(model)
    with ExitStack() as undo:
        for name in names:
            hook = modules[name].register_forward_hook(lambda module, args, output, name=name: changed(name, output))
            undo.callback(hook.remove)
        yield


def _on_embedding(model: nn.Module, inputs: Inputs, by_sample: Sequence[bool]) -> tuple[NoisyOutput, ...]:
    """The outputs of the embedding that runs first: it turns whole numbers into floating ones for each sample."""
    found: list[str] = []
    others: list[str] = []

    def note(name: str, args: Any, kwargs: Any, output: Any) -> None:
        given = tensors([list(args), kwargs])
        whole = bool(given) and not any(t.is_floating_point() or t.is_complex() for t in given)
        if any(tensor.is_floating_point() for tensor in tensors(output)):
            (found if whole else others).append(name)

    with ExitStack() as undo:
        for name, module in named_modules(model).items():
            if not module._modules or isinstance(module, nn.Embedding | nn.EmbeddingBag):
                hook = module.register_forward_hook(
                    lambda module, args, kwargs, output, name=name: note(name, args, kwargs, output), with_kwargs=True
                )
                undo.callback(hook.remove)
        model(map_tensors(torch.clone, take(inputs, slice(0, 2), by_sample)))
    for name in dict.fromkeys(found):
        # The embedding of positions is the same for all samples.
        with suppress(ValueError):
            return _sites(model, inputs, by_sample, [name])
    names: list[str] = []
    for name in dict.fromkeys(found + others):
        with suppress(ValueError):
            names += [name] if len(names) < 3 and _sites(model, inputs, by_sample, [name]) else []
    if any(tensor.is_complex() for tensor in tensors(inputs)):
        back = instead("forward", "`forward=`", "the model")
        how = f"Pass `torch.view_as_real(inputs)`, and turn it back with `torch.view_as_complex` in {back}"
    else:
        how = "Pass floating numbers, as the model computes them from these (`inputs.float()`)"
    raise TypeError(
        f"`inputs` ({shown(inputs)}) holds no floating tensor that noise could disturb, and no embedding has run. "
        f"{how}; or name modules whose output it is to disturb, for instance noise_at={names}."
    )


def _sites(model: nn.Module, inputs: Inputs, by_sample: Sequence[bool], names: list[str]) -> tuple[NoisyOutput, ...]:
    """The outputs of some modules, in order: found by sending two and then three samples through the network."""
    if not names:
        return ()

    def shapes(rows: int) -> dict[tuple[str, int], tuple[int, ...]]:
        met = {}

        def note(name: str, run: int, clean: Tensor) -> Tensor:
            met[name, run] = tuple(clean.shape)
            return clean

        some = take(inputs, torch.arange(rows) % min(rows, count(inputs)), by_sample)
        with changed_outputs(model, set(names), note):
            model(map_tensors(torch.clone, some))
        return met

    two, three = shapes(2), shapes(3)
    for name in names:
        if (name, 0) not in two:
            raise ValueError(
                f"`noise_at` names {name!r}, which put out no floating tensor when the model ran. Name a module that "
                "runs in `forward` and whose output is floating."
            )
    return tuple(_site(*place, shape, three.get(place, ())) for place, shape in two.items())


def _site(name: str, run: int, two: tuple[int, ...], three: tuple[int, ...]) -> NoisyOutput:
    """The output with these shapes for two and for three samples: they must differ in the number of samples alone."""
    dims = [dim for dim, sizes in enumerate(zip(two, three, strict=False)) if sizes[0] != sizes[1]]
    if len(two) != len(three) or [(two[dim], three[dim]) for dim in dims] != [(2, 3)]:
        raise ValueError(
            f"`noise_at` names {name!r}, whose output has shape {list(two)} for 2 samples and {list(three)} for 3: "
            "one dimension must be the number of samples, and the others stay. Name another module."
        )
    return NoisyOutput(name, run, dims[0], two[: dims[0]] + two[dims[0] + 1 :])


def disturb(inputs: Inputs, noise: Inputs, sigma: Tensor) -> Inputs:
    """``inputs + sigma * noise``, ``sigma [samples]``, in float32 or better: a copy that the network may overwrite."""

    def add(clean: Tensor, drawn: Tensor | None) -> Tensor:
        if drawn is None:
            return clean.detach().clone()
        wide = torch.promote_types(clean.dtype, torch.float32)
        level = sigma.to(clean.device, wide).reshape(-1, *[1] * (clean.ndim - 1))
        return torch.addcmul(clean.detach().to(wide), level, drawn.to(wide)).to(clean.dtype)

    return map_tensors(add, inputs, noise)
