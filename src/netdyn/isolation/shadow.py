"""Shadows: copies of modules, and of the plain objects that they lead to, which can be run in place of the originals.

Nothing is ever written to an original, and no code of its classes runs while it is copied: attributes, slots and
contents are read as they are. What cannot be copied is shared; if it may hold a state, it is named.
"""

from __future__ import annotations

import copy
import enum
import functools
import random
import threading
import types
import warnings
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter, is_lazy

from netdyn.isolation.observers import observers
from netdyn.isolation.wrappers import inside_of

#: Larger tensors and arrays that are no parameters and no buffers count as data, and are shared; so are the members of
#: longer containers.
LARGEST_BYTES, LONGEST = 1 << 24, 10_000
#: Packages whose objects are shared without a word: they lead to everything else, or have no state of the network's.
FOREIGN = frozenset(
    {
        *("lightning", "pytorch_lightning", "lightning_fabric", "torch", "numpy", "netdyn"),
        *("tensorboard", "wandb", "comet_ml", "mlflow", "litlogger", "logging"),
        *(
            "functools",
            "builtins",
            "inspect",
            "typing",
            "types",
            "abc",
            "enum",
            "re",
            "weakref",
            "importlib",
            "warnings",
        ),
        *("contextlib", "dataclasses"),
    }
)
#: Packages whose objects belong to threads, processes or the system: shared and named, with the object that has one.
SYSTEM = frozenset(
    {
        *(
            "threading",
            "queue",
            "_queue",
            "multiprocessing",
            "concurrent",
            "asyncio",
            "subprocess",
            "socket",
            "_socket",
        ),
        *("select", "selectors", "ssl", "io", "_io", "tempfile", "mmap", "sqlite3"),
    }
)
#: Parts of torch whose objects are copied like those of the user.
_OF_TORCH = ("torch.quasirandom", "torch.utils.data.dataset", "torch.utils.data.sampler")
_GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
_CONTAINERS: tuple[type, ...] = (OrderedDict, defaultdict, dict, list, set, deque)
_ATOMIC = frozenset(
    {
        *(type(None), bool, int, float, complex, str, bytes, frozenset, type, range, slice, object, type(...)),
        *(types.ModuleType, types.CodeType, types.MappingProxyType, property, type(NotImplemented)),
        *(weakref.ProxyType, weakref.CallableProxyType, type(threading.Lock()), type(threading.RLock())),
        *(torch.device, torch.dtype, torch.Size, torch.layout, torch.memory_format),
    }
)
_SINGLE = (type, enum.Enum)
_Where = tuple[Any, str] | None  # where an object was found: the place before, and the name there


class Shadows:
    """Copies of objects. They lead to one another as the originals do, and share what cannot be copied.

    Attributes:
        modules: All copied modules.
        classes: The classes of the user's own among the copied objects.
        named: Where shared objects were found that may have a state, and what they are.
    """

    def __init__(self, observer_hooks: Sequence[Any] = ()) -> None:
        self._observer_hooks = observer_hooks  # left out of the copies, with those that are known
        self.modules: list[nn.Module] = []
        self.classes: set[type] = set()
        self.named: dict[str, str] = {}
        known: list[Any] = [torch.default_generator, *torch.cuda.default_generators]
        known += [np.random.mtrand._rand, random._inst]
        # By the original's id, as `copy.deepcopy` wants it. The global generators are kept elsewhere.
        self._copies: dict[int, Any] = {id(generator): generator for generator in known}
        self._originals: list[Any] = []  # kept alive, so that each has its own id
        self._storages: dict[int, Any] = {}
        self._leading: dict[types.FunctionType, bool] = {}  # whether a global function leads to copied modules
        self._unfilled: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()

    def of(self, value: Any, name: str = "") -> Any:
        """The copy of an object, called ``name`` where it is named."""
        twin = self._copy(value, (None, name))
        while self._unfilled:
            fill, arguments = self._unfilled.popleft()
            try:
                fill(*arguments)
            except Exception as error:
                self.named.setdefault("a part of the network", type(error).__name__)
        return twin

    def _later(self, fill: Callable[..., None], *arguments: Any) -> None:
        self._unfilled.append((fill, arguments))

    def _copy(self, value: Any, where: _Where) -> Any:
        kind = type(value)  # what an object says of its class may be an error
        if kind in _ATOMIC or issubclass(kind, _SINGLE):
            return value
        if id(value) in self._copies:
            return self._copies[id(value)]
        self._originals.append(value)
        try:
            twin = self._copied(value, kind, where)
        except Exception:
            twin = self._shared(value, kind, where, _may_have_state(kind))
        self._copies[id(value)] = twin
        return twin

    def _shared(self, value: Any, kind: type, where: _Where, name: bool) -> Any:
        if name:
            parts = []
            while where is not None:
                where, part = where
                parts.append(part)
            self.named.setdefault(".".join(filter(None, reversed(parts))), kind.__name__)
        return value

    def _copied(self, value: Any, kind: type, where: _Where) -> Any:
        """A copy, which is filled later where others may lead back to it."""
        if issubclass(kind, Tensor):
            return self._tensor(value, kind)
        if issubclass(kind, nn.Module):
            return self._module(value, kind, where)
        if issubclass(kind, _CONTAINERS):
            return self._container(value, kind, where)
        if issubclass(kind, tuple):
            return self._tuple(value, kind, where)
        if kind is types.FunctionType:
            return self._function(value, where)
        if kind is types.MethodType:
            return types.MethodType(self._copy(value.__func__, where), self._copy(value.__self__, where))
        if kind in (types.BuiltinFunctionType, types.MethodWrapperType):
            owner = self._copy(value.__self__, where)
            return value if owner is value.__self__ else getattr(owner, value.__name__)
        if kind is types.CellType:
            self._later(self._fill_cell, twin := types.CellType(), value, where)
            return twin
        if issubclass(kind, functools.partial):
            function, arguments = self._copy(value.func, where), [self._copy(each, where) for each in value.args]
            options = {name: self._copy(each, (where, name)) for name, each in value.keywords.items()}
            return functools.partial.__new__(kind, function, *arguments, **options)
        if kind is weakref.ReferenceType:
            target = value()
            return weakref.ref(self._copy(target, where)) if issubclass(type(target), nn.Module | Tensor) else value
        if issubclass(kind, np.ndarray):
            small = value.nbytes <= LARGEST_BYTES and not value.dtype.hasobject
            return value.copy(order="K") if small else value
        if issubclass(kind, _GENERATORS):
            return _generator(value)
        return self._object(value, kind, where)

    # --- tensors ---

    def _tensor(self, value: Tensor, kind: type) -> Any:
        """A copy with the same strides; tensors that share memory do so as copies. A graph is not kept."""
        if is_lazy(value):
            return value
        large = value.layout == torch.strided and value.nbytes > LARGEST_BYTES
        if kind is Parameter:
            twin: Tensor = Parameter(self._values(value.detach()), requires_grad=value.requires_grad)
        elif isinstance(value, Parameter) or large:
            return value  # a kind of parameter of another package's; data
        else:
            twin = self._values(value.detach())
            if value.is_leaf and value.requires_grad:
                twin.requires_grad_()
        twin.__dict__.update(value.__dict__)
        return twin

    def _values(self, value: Tensor) -> Tensor:
        plain = type(value) is Tensor and value.layout == torch.strided
        if not plain or value.is_meta or value.is_mkldnn or value.is_quantized or value.is_conj() or value.is_neg():
            return value.clone()
        storage = value.untyped_storage()
        if storage._cdata not in self._storages:
            self._originals.append(storage)
            self._storages[storage._cdata] = storage.clone()  # type: ignore[no-untyped-call]
        empty = torch.empty(0, dtype=value.dtype, device=value.device)
        return empty.set_(self._storages[storage._cdata], value.storage_offset(), value.size(), value.stride())

    # --- modules ---

    def _module(self, module: nn.Module, kind: type, where: _Where) -> Any:
        if issubclass(kind, torch.jit.ScriptModule):
            return self._scripted(module)
        twin: Any = object.__new__(kind)
        self.modules.append(twin)
        self._note_class(kind)
        self._later(self._fill_module, twin, module, kind, where)
        return twin

    def _fill_module(self, twin: Any, module: nn.Module, kind: type, where: _Where) -> None:
        for buffer in module._buffers.values():
            # Registered buffers are state, whatever their size.
            if type(buffer) is Tensor and id(buffer) not in self._copies:
                self._originals.append(buffer)
                self._copies[id(buffer)] = self._values(buffer.detach()).requires_grad_(buffer.requires_grad)
        inside = inside_of(module)
        # Compiled code would be compiled anew.
        without = ("_compiled_call_impl", *(["forward"] if inside else []))
        self._fill_attributes(twin, module, kind, where, without)
        if inside == "_original_module":
            self._later(_use_inside, twin._modules, inside)
        elif inside:
            # A data-parallel forward would exchange buffers with the other processes.
            twin.__dict__["forward"] = functools.partial(_call_inside, twin, inside)
        for _, name, key in observers([module], self._observer_hooks):
            self._later(twin.__dict__[name].pop, key)

    def _scripted(self, module: nn.Module) -> nn.Module:
        twin = copy.deepcopy(module)
        for original, own in zip(module.modules(), twin.modules(), strict=True):
            self._copies[id(original)] = own
            self._originals.append(original)
            self.modules.append(own)
            for name, value in original.__dict__.items():
                if type(value) is types.MethodType and name not in own.__dict__:
                    own.__dict__[name] = types.MethodType(value.__func__, own)
        return twin

    # --- containers ---

    def _tuple(self, value: Any, kind: type, where: _Where) -> Any:
        members = list(tuple.__iter__(value))
        twins = members if len(members) >= LONGEST else [self._copy(member, where) for member in members]
        attributes, _ = _state(value, kind)
        if not attributes and all(member is twin for member, twin in zip(members, twins, strict=True)):
            return value
        twin: Any = tuple.__new__(kind, twins)
        self._later(self._fill_attributes, twin, value, kind, where)
        return twin

    def _container(self, value: Any, kind: type, where: _Where) -> Any:
        base: Any = next(base for base in _CONTAINERS if issubclass(kind, base))
        twin: Any = base.__new__(kind)
        if base is deque:
            deque.__init__(twin, (), deque.maxlen.__get__(value))
        # Read in one step, since a thread may write to it.
        read = base.items if issubclass(base, dict) else base.__iter__
        members = list(read(value))
        self._later(self._fill_container, twin, value, base, members, where)
        if kind not in _CONTAINERS:
            self._later(self._fill_attributes, twin, value, kind, where)
        return twin

    def _fill_container(self, twin: Any, value: Any, base: Any, members: list[Any], where: _Where) -> None:
        follow = len(members) < LONGEST
        if issubclass(base, dict):
            if base is defaultdict:
                twin.default_factory = self._copy(value.default_factory, where)
            for key, member in members:
                own = self._copy(key, where) if issubclass(type(key), nn.Module) else key
                label = key if type(key) is str else type(key).__name__
                base.__setitem__(twin, own, self._copy(member, (where, label)) if follow else member)
        elif base is set:
            # Members that are equal to others by value count as values.
            plain: Any = object.__hash__
            set.update(twin, [self._copy(m, where) if type(m).__hash__ is plain else m for m in members])
        else:
            base.extend(twin, [self._copy(member, where) for member in members] if follow else members)

    # --- functions ---

    def _function(self, function: types.FunctionType, where: _Where) -> Any:
        if "_torchdynamo_orig_callable" in function.__dict__:  # compiled
            return self._copy(function.__dict__["_torchdynamo_orig_callable"], where)
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        cells.pop("__class__", None)
        own = self._own_globals(function)
        leads = own or any(issubclass(type(_content(cell)), nn.Module | types.MethodType) for cell in cells.values())
        if not leads and (_package(function) in FOREIGN or not (cells or function.__defaults__)):
            return function
        closure = tuple(self._copy(cell, where) for cell in function.__closure__ or ())
        space = {**function.__globals__, **own} if own else function.__globals__
        twin = types.FunctionType(function.__code__, space, function.__name__, None, closure)
        twin.__qualname__, twin.__module__ = function.__qualname__, function.__module__
        self._later(self._fill_function, twin, function, where)
        return twin

    def _fill_function(self, twin: types.FunctionType, function: types.FunctionType, where: _Where) -> None:
        twin.__defaults__ = self._copy(function.__defaults__, where)
        twin.__kwdefaults__ = function.__kwdefaults__ and dict(self._copy(function.__kwdefaults__, where))
        twin.__dict__.update({name: self._copy(value, (where, name)) for name, value in function.__dict__.items()})

    def _fill_cell(self, twin: types.CellType, cell: types.CellType, where: _Where) -> None:
        try:
            twin.cell_contents = self._copy(cell.cell_contents, where)
        except ValueError:  # not filled yet
            return

    def _own_globals(self, function: types.FunctionType) -> dict[str, Any]:
        """The copies of what a function finds among its globals, if it leads to modules that have been copied."""
        names = () if _package(function) in FOREIGN else set(_names(function.__code__))
        found = {name: function.__globals__.get(name) for name in names}
        return {
            name: self._copy(value, None) for name, value in found.items() if self._leads_to_copies(value, function)
        }

    def _leads_to_copies(self, value: Any, function: types.FunctionType) -> bool:
        kind = type(value)
        if issubclass(kind, nn.Module):
            return any(id(module) in self._copies for module in value.modules())
        if kind is types.FunctionType and value.__globals__ is function.__globals__:
            if value not in self._leading:
                self._leading[value] = False  # a function may call itself
                found = [value.__globals__.get(name) for name in _names(value.__code__)]
                self._leading[value] = any(self._leads_to_copies(each, function) for each in found)
            return self._leading[value]
        if kind in (dict, list, tuple) and len(value) < LONGEST:
            members = list(value.values()) if kind is dict else value
            return any(issubclass(type(each), nn.Module) and self._leads_to_copies(each, function) for each in members)
        return False

    # --- other objects ---

    def _object(self, value: Any, kind: type, where: _Where) -> Any:
        package = _package(kind)
        if package in SYSTEM or defines(kind, "__del__"):
            # What ends a thread, a process or a file must not run for a copy.
            return self._shared(value, kind, where, _may_have_state(kind))
        away = any(base.__name__ in ("Trainer", "Logger", "Callback") and is_foreign(base) for base in kind.__mro__)
        if away or (is_foreign(kind) and package not in ("builtins", "weakref", "numpy")):
            return self._shared(value, kind, where, defines(kind, "__next__"))
        try:
            twin = types.SimpleNamespace() if kind is types.SimpleNamespace else object.__new__(kind)
        except TypeError:  # its class is not written in Python
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # iterators will not be copied by later versions of Python
                return copy.deepcopy(value, self._copies)
        attributes, slots = _state(value, kind)
        if not (attributes or slots or _has_methods(kind)):
            return value  # a mark, which code compares with by identity
        if any(_package(type(own)) in SYSTEM for own in (*attributes.values(), *slots.values())):
            return self._shared(value, kind, where, True)
        self._note_class(kind)
        self._later(self._fill_attributes, twin, value, kind, where)
        return twin

    def _fill_attributes(self, twin: Any, value: Any, kind: type, where: _Where, without: Collection[str] = ()) -> None:
        attributes, slots = _state(value, kind)
        if attributes:
            own = object.__getattribute__(twin, "__dict__")
            for name, member in attributes.items():
                if name not in without:
                    # A module's dictionaries are no part of a name.
                    label = "" if name in ("_parameters", "_buffers", "_modules") else str(name)
                    own[name] = self._copy(member, (where, label))
        for descriptor, member in slots.items():
            descriptor.__set__(twin, self._copy(member, (where, descriptor.__name__)))

    def _note_class(self, kind: type) -> None:
        self.classes.update(base for base in kind.__mro__ if not is_foreign(base))


def _call_inside(wrapper: nn.Module, inside: str, *args: Any, **kwargs: Any) -> Any:
    return wrapper.get_submodule(inside)(*args, **kwargs)


def _use_inside(modules: dict[str, Any], inside: str) -> None:
    """Let the wrapper of Fabric run the module itself, not its data-parallel wrapper."""
    modules["_forward_module"] = modules[inside]


def defines(kind: type, name: str) -> bool:
    """Whether a class or one of its bases defines a method; a metaclass is not asked."""
    return any(name in base.__dict__ for base in kind.__mro__)


def _has_methods(kind: type) -> bool:
    """Whether objects of a class can do more than be compared and shown."""
    own = [name for base in kind.__mro__ if base is not object for name, value in vars(base).items() if callable(value)]
    return any(name == "__call__" or not name.startswith("__") for name in own)


def _package(value: Any) -> str:
    """The package that a class or function is of."""
    module = value.__module__
    return module.partition(".")[0] if isinstance(module, str) else ""


def is_foreign(kind: type) -> bool:
    """Whether the objects of a class are not the network's own."""
    return _package(kind) in FOREIGN and not (kind is types.SimpleNamespace or kind.__module__.startswith(_OF_TORCH))


def _may_have_state(kind: type) -> bool:
    """Whether an object that is shared may have a state that a run moves."""
    return defines(kind, "__next__") or _package(kind) not in FOREIGN or kind in (memoryview, types.CoroutineType)


def _state(value: Any, kind: type) -> tuple[dict[str, Any], dict[Any, Any]]:
    """An object's attributes, and its slots by their descriptors."""
    try:
        attributes = dict(object.__getattribute__(value, "__dict__"))
    except AttributeError:
        attributes = {}
    slots = {}
    for base in kind.__mro__:
        for descriptor in vars(base).values() if "__slots__" in vars(base) else ():
            if type(descriptor) is types.MemberDescriptorType:
                try:
                    slots[descriptor] = descriptor.__get__(value)
                except AttributeError:  # not set
                    continue
    return attributes, slots


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _names(code: types.CodeType) -> Iterable[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if type(constant) is types.CodeType:
            yield from _names(constant)


def _generator(generator: Any) -> Any:
    if not isinstance(generator, torch.Generator):
        return copy.deepcopy(generator)
    twin = torch.Generator(generator.device)
    twin.set_state(generator.get_state())
    return twin
