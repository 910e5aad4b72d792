"""From a batch to the model's input and the target: the usual forms of batches, and which of several loaders counts."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from netdyn._utils.inputs import shown
from netdyn._utils.trees import Inputs, map_tensors

#: The keys of a mapping that are understood, the first one present counts.
TARGETS = ("target", "targets", "label", "labels", "y")
INPUTS = ("input", "inputs", "x", "image", "images", "data")
#: Names of arguments of Hugging Face's models: with one of them, every tensor but the target is an argument.
ARGUMENTS = ("input_ids", "inputs_embeds", "pixel_values", "input_values", "input_features")


def input_and_target(batch: Any) -> tuple[Inputs, Tensor]:
    """The default ``unpack``: a pair (input, target), or a mapping with the usual keys.

    A mapping has its target under ``target``, ``targets``, ``label``, ``labels`` or ``y``, and its input under
    ``input``, ``inputs``, ``x``, ``image``, ``images`` or ``data``. With names such as ``input_ids`` or
    ``pixel_values``, all tensors but the target are the input, as a mapping.

    >>> import torch
    >>> input_and_target({"image": torch.tensor([0.5]), "label": torch.tensor([2]), "path": ["a.png"]})
    (tensor([0.5000]), tensor([2]))
    """
    batch = _opened(batch)
    if isinstance(batch, list | tuple) and len(batch) == 2 and isinstance(batch[1], Tensor):
        return batch[0], batch[1]
    if isinstance(batch, Mapping) and (keys := _keys(batch)) is not None:
        inputs, target = keys
        if isinstance(inputs, str):
            return batch[inputs], batch[target]
        return {key: batch[key] for key in inputs}, batch[target]
    raise TypeError(
        f"A batch must be a pair (input, target), or a mapping with keys such as 'x' and 'y', got {shown(batch)}. Pass "
        "`unpack=`, a function of the batch that returns the model's input and the target, a tensor."
    )


def input_and_next_token(batch: Any) -> tuple[Inputs, Tensor]:
    """As :func:`input_and_target`, for a model that shifts labels ``[samples, positions]`` by one in its loss.

    At each position the target is the label of the next one; the last position has none, which −100 marks.

    >>> import torch
    >>> input_and_next_token((torch.tensor([[5, 6, 7]]), torch.tensor([[5, 6, 7]])))
    (tensor([[5, 6, 7]]), tensor([[   6,    7, -100]]))
    """
    inputs, labels = input_and_target(batch)
    return inputs, nn.functional.pad(labels[:, 1:], (0, 1), value=-100) if labels.ndim > 1 else labels


def what_is_taken(batch: Any) -> str:
    """What :func:`input_and_target` takes from a batch, for a person; empty for a pair.

    >>> import torch
    >>> what_is_taken({"image": torch.zeros(1), "label": torch.zeros(1)})
    "input 'image', target 'label'"
    """
    batch = _opened(batch)
    keys = _keys(batch) if isinstance(batch, Mapping) else None
    if keys is None:
        return ""
    inputs, target = keys
    shown = repr(inputs) if isinstance(inputs, str) else ", ".join(map(repr, inputs))
    return f"input {shown}, target {target!r}"


def _opened(batch: Any) -> Any:
    """A batch that is the only item of a list or a mapping."""
    while isinstance(batch, list | tuple | Mapping) and len(batch) == 1:
        item = next(iter(batch.values() if isinstance(batch, Mapping) else batch))
        if not isinstance(item, list | tuple | Mapping):
            break
        batch = item
    return batch


def _keys(batch: Mapping[Any, Any]) -> tuple[str | list[str], str] | None:
    """The key of the input, or the keys of a mapping of inputs, and the key of the target."""
    target = next((key for key in TARGETS if isinstance(batch.get(key), Tensor)), None)
    if target is None:
        return None
    if any(key in batch for key in ARGUMENTS):
        return [key for key, value in batch.items() if isinstance(value, Tensor) and key not in TARGETS], target
    found = next((key for key in INPUTS if key in batch), None)
    return None if found is None else (found, target)


def first_of(loaders: Any) -> tuple[Any, tuple[Any, ...], bool]:
    """The first of the loaders in lists and mappings of any depth, the keys that lead to it, and if there are others.

    >>> first_of({"a": ["loader", "another"], "b": "third"})
    ('loader', ('a', 0), True)
    """
    path: tuple[Any, ...] = ()
    others = False
    while isinstance(loaders, list | tuple | Mapping) and len(loaders):
        others |= len(loaders) > 1
        path += (next(iter(loaders)) if isinstance(loaders, Mapping) else 0,)
        loaders = loaders[path[-1]]
    return loaders, path, others


def detached_copy(batch: Any) -> Any:
    """A copy of a batch that shares no memory with it; dataclasses, also frozen ones, are rebuilt."""
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        twin = copy.copy(batch)
        for field in dataclasses.fields(batch):
            object.__setattr__(twin, field.name, detached_copy(getattr(batch, field.name)))
        return twin
    if isinstance(batch, Mapping | list | tuple):
        return map_tensors(lambda tensor: tensor.detach().clone(), batch, on_other=detached_copy)
    return batch.detach().clone() if isinstance(batch, Tensor) else batch
