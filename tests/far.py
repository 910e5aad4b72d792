"""A device that is not there: its tensors lie on the CPU, but behave as if they were far away, and every wait is noted.

To be loaded in a process of its own, which the device stays registered in. Kernels are the CPU's; what a GPU would not
do without waiting for all that was given before (reading a number, choosing by flags, a copy that blocks) is noted with
its place in netdyn, and what it would not do at all (combining tensors of two devices) is an error.
"""

import traceback
from pathlib import Path

import torch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import netdyn
from netdyn._utils import transit

_setup_privateuseone_for_python_backend("far")
transit.STREAMED.add("far")
transit.mark = lambda device: Arrived()
DEVICE = torch.device("far:0")
SOURCE = str(Path(netdyn.__file__).parent)

#: Operations whose result, or its size, the host has to know before it goes on.
READS = {
    f"aten.{name}"
    for name in (
        "_local_scalar_dense",
        "bincount",
        "equal",
        "is_nonzero",
        "masked_select",
        "nonzero",
        "repeat_interleave",
        "unique_consecutive",
        "unique_dim",
        "_unique2",
    )
}
#: Operation and place of each wait so far.
WAITS = []


class Arrived:
    """A place in what the device was given: here all is done at once."""

    def synchronize(self):
        pass


def note(what):
    """Write down a wait, and where in netdyn it was."""
    inside = [frame for frame in traceback.extract_stack() if frame.filename.startswith(SOURCE)]
    WAITS.append((what, " < ".join(f"{Path(frame.filename).stem}.{frame.name}" for frame in inside[:-4:-1])))


class Far(torch.Tensor):
    """A tensor on the device; ``near`` is where its values really are."""

    @staticmethod
    def __new__(cls, near):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            near.size(),
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device=DEVICE,
        )
        made.near = near
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})

    def tolist(self):
        note("tolist")
        return self.near.tolist()

    def data_ptr(self):
        return self.near.data_ptr()


def run(function, args, kwargs):
    """One operation: on the CPU, with its waits noted and its result where it belongs."""
    name = str(function.overloadpacket)
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    far = [tensor for tensor in given if isinstance(tensor, Far)]
    here = bool(far)
    if (device := kwargs.get("device")) is not None:
        here, kwargs = torch.device(device).type == "far", kwargs | {"device": torch.device("cpu")}
    _note_waits(name, args, kwargs, far, here)
    result = function(*_near(args), **_near(kwargs))
    if not here:
        return result
    same = {id(tensor.near): tensor for tensor in far}
    return tree_map(lambda made: same[id(made)] if id(made) in same else _far(made), result)


def _near(values):
    return tree_map(lambda value: value.near if isinstance(value, Far) else value, values)


def _far(value):
    return Far(value) if isinstance(value, torch.Tensor) else value


def _note_waits(name, args, kwargs, far, here):
    if name in ("aten._to_copy", "aten.copy_"):
        crosses = bool(far) != here if name == "aten._to_copy" else isinstance(args[0], Far) != isinstance(args[1], Far)
        blocks = not (kwargs.get("non_blocking") or (name == "aten.copy_" and len(args) > 2 and args[2]))
        if crosses and blocks:
            note("copy")
    elif far and name in READS:
        note(name)
    elif far and name in ("aten.index", "aten.index_put", "aten.index_put_"):
        chosen = [index for index in args[1] if isinstance(index, torch.Tensor)]
        if not isinstance(args[0], Far):
            raise RuntimeError(f"{name} of a tensor on the host by one on the device")
        if any(index.dtype in (torch.bool, torch.uint8) or not isinstance(index, Far) for index in chosen):
            note(name)
    elif far:
        near = [tensor for tensor in tree_leaves((args, kwargs)) if type(tensor) is torch.Tensor and tensor.ndim]
        if near:
            raise RuntimeError(f"{name} was given tensors on two devices")


LIBRARY = torch.library.Library("_", "IMPL")
LIBRARY.fallback(lambda function, *args, **kwargs: run(function, args, kwargs), "PrivateUse1")
