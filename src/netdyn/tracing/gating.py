"""Activations that are written by hand: a tensor gated by a function of itself, such as ``h * torch.sigmoid(h)``.

Every element-wise operation on one tensor is followed. Where two results of the same tensor meet in a product, a
quotient, a ``where``, a ``maximum`` or, where both hold an activation, a sum, the whole is one activation of the last
tensor that both come from. A survey decides which of these meetings ends an activation; later runs look this up.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from netdyn.tracing.site import Key


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CASTS = _words("float double half bfloat16 to type type_as clone contiguous")
_PRODUCTS = _words("mul multiply div divide true_divide")
_SUMS = _words("add sub subtract")
_AFFINE = _CASTS | _PRODUCTS | _SUMS | _words("__rsub__ neg negative positive")
_POWERS = _words("pow square")
_BENT = _POWERS | _words(
    "sqrt rsqrt reciprocal exp expm1 exp2 log log1p log2 log10 sin cos tan atan arctan sinh cosh asinh erf erfc abs "
    "absolute sign sgn floor ceil round trunc heaviside gt ge lt le greater greater_equal less less_equal logical_not "
    "__invert__ __rdiv__ __rtruediv__ __rpow__"
)
_CHOICES = _words("where masked_fill __setitem__")
_EXTREMES = _words("maximum minimum fmax fmin max min")
_ELEMENTWISE = _AFFINE | _BENT | _CHOICES | _EXTREMES
#: Functions that make tensors without samples.
_CONSTANTS = _words(
    "zeros zeros_like ones ones_like full full_like tensor scalar_tensor new_zeros new_ones new_full new_tensor"
)
#: Calls that only ask what a tensor is like.
_QUESTIONS = _words("__get__ __set__ size dim ndimension numel __len__ is_floating_point stride get_device")
#: Functions with weights, whose input is the output of a layer.
_WEIGHTED = _words(
    "linear bilinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d matmul mm addmm"
)


#: A mask that fills in such a number hides entries from a softmax.
HIDDEN = -1e4
#: After this many element-wise operations in a row a tensor counts as the start of what follows.
LONGEST = 100


@dataclass(eq=False)
class Value:
    """A tensor that is an element-wise function of another one."""

    tensor: weakref.ref[Tensor]
    version: int
    function: str = ""
    parents: tuple[Value, ...] = ()
    kept: tuple[Tensor, ...] = ()  #: what it comes from, for as long as it lives
    bends: bool = False  #: whether its function is not affine
    key: Key | None = None  #: of an activation
    gated: Value | None = None  #: what it gates, if it ends an activation that is written by hand
    base: Value | None = None  #: the activation that it merely continues, as a power or by a factor
    line: tuple[Value, ...] = ()  #: the tensors through which everything passes, itself last
    children: list[Value] = field(default_factory=list)
    outside: bool = False  #: whether other functions use it
    name: str = ""  #: the module that returned it, if it is the start of others
    void: bool = False  #: whether it ends no activation after all
    weighted: bool = False  #: whether one of them has weights

    @property
    def polynomial(self) -> bool:
        """Whether its function is a product or a power, and no activation."""
        return self.key is None and self.function in _PRODUCTS | _POWERS

    def now(self) -> Tensor | None:
        """The tensor; None if it is gone, or has been overwritten."""
        tensor = self.tensor()
        return tensor if tensor is not None and _version(tensor) == self.version else None

    def between(self, start: Value) -> Iterator[Value]:
        """Itself and all that lies on the ways from ``start``."""
        seen, todo = {id(start)}, [self]
        while todo:
            value = todo.pop()
            if id(value) not in seen:
                seen.add(id(value))
                todo += value.parents
                yield value


@dataclass(frozen=True)
class Operation:
    """An element-wise operation on values that come from one tensor."""

    name: str
    inplace: bool
    values: tuple[Value, ...]
    gated: Value | None  #: what the result gates, if it may end an activation
    base: Value | None
    shape: Any  #: of the values

    @property
    def field(self) -> Tensor | None:
        """The tensor that the result gates, if it is still what it was."""
        return None if self.gated is None else self.gated.now()


class Gates:
    """Follows element-wise operations in one run; in a survey it keeps all of them."""

    def __init__(self, model: nn.Module, survey: bool, named: Callable[[Tensor], str | None]) -> None:
        self._survey, self._named = survey, named
        self._known: dict[int, Value] = {}
        self._constants = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
        self._made: dict[int, weakref.ref[Tensor]] = {}
        self.values: list[Value] = []

    def operation(self, function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Operation | None:
        """What a call does to values that come from one tensor; None, and these are used elsewhere, for other calls."""
        name = getattr(function, "__name__", "")
        inplace = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
        name = name.removesuffix("_") if inplace and name != "__setitem__" else name
        given = [value for value in _tensors([*args, *kwargs.values()]) if not self.is_constant(value)]
        given = given[:1] if name in _CASTS else given
        elementwise = name in _ELEMENTWISE and "out" not in kwargs and not (name == "masked_fill" and _hides(args))
        if elementwise and given and all(t.shape == given[0].shape for t in given):
            values = tuple(self.value(tensor) for tensor in given)
            if all(value.line[0] is values[0].line[0] for value in values):
                found = self._judged(name, inplace, values, given[0], args)
                if found is not None:
                    return found
        if self._survey and name not in _QUESTIONS and name not in _CONSTANTS:
            for tensor in given:
                value = self.value(tensor)
                value.outside = True
                value.weighted |= name in _WEIGHTED and tensor is args[0]
        return None

    def _judged(
        self, name: str, inplace: bool, values: tuple[Value, ...], given: Tensor, args: Any
    ) -> Operation | None:
        first, gated, base = values[0], None, None
        alike = all(value is first for value in values)
        power = args[1] if name == "pow" and len(args) > 1 else 2
        squared = name in _POWERS and isinstance(power, int | float) and power > 1
        if alike and first.key is not None and (squared or (name in _PRODUCTS and len(values) == 2)):
            gated, base = first.gated or first.parents[0], first
        elif len(values) == 1 and name in _CHOICES | _EXTREMES:
            return None
        elif len(values) == 1:
            if first.gated is not None and name in _AFFINE - _CASTS:
                gated, base = first.gated, first
        elif not alike:
            common = _common(values)[-1]
            bent = [any(own.bends and not own.polynomial for own in value.between(common)) for value in values]
            keyed = any(own.key is not None for value in values for own in value.between(common))
            if name in _CHOICES | _EXTREMES or (name in _PRODUCTS and any(bent)):
                gated = common
            elif name in _SUMS and keyed:
                if not all(bent):
                    return None
                gated = common
            elif name not in _PRODUCTS | _SUMS:
                return None
        if gated is not None and self._survey and gated.now() is None:
            return None  # it has been overwritten since
        return Operation(name, inplace, values, gated, base, given.shape)

    def note(self, operation: Operation, result: Any, key: Key | None = None, emitted: bool = False) -> None:
        """Take the result of an operation; an ``emitted`` one has been read as an activation."""
        bends = operation.name not in _AFFINE or (len(operation.values) > 1 and operation.name in _PRODUCTS)
        shape = operation.shape
        if isinstance(result, Tensor) and (result.shape == shape or operation.inplace):
            self._add(result, operation.name, operation.values, bends, key, operation, emitted)
        else:
            for value in operation.values:
                value.outside = True

    def note_activation(self, name: str, subject: Value, result: Tensor, key: Key, emitted: bool) -> None:
        """Take the result of an activation."""
        self._add(result, name, (subject,), True, key, None, emitted)

    def note_constant(self, function: Callable[..., Any], result: Tensor) -> None:
        """Take a tensor that a function has made, if it holds no samples."""
        if getattr(function, "__name__", "") in _CONSTANTS:
            self._made[id(result)] = weakref.ref(result)

    def is_constant(self, value: Any) -> bool:
        """Whether a value is a number, a parameter or a buffer, or was made without samples."""
        if not isinstance(value, Tensor):
            return True
        made = self._made.get(id(value))
        return value.ndim == 0 or id(value) in self._constants or (made is not None and made() is value)

    def forget(self, result: Any) -> None:
        """Let a tensor be the start of what follows: it is the output of an activation that has been read whole."""
        self._known.pop(id(result), None)

    def replaced(self, tensor: Tensor, copied: Tensor) -> Tensor:
        """The copy of a tensor, in whose place it is from now on."""
        if (value := self._known_value(tensor)) is not None:
            value.tensor, value.version = self._remember(copied, value), _version(copied)
        return copied

    def _remember(self, tensor: Tensor, value: Value) -> weakref.ref[Tensor]:
        place = id(tensor)
        self._known[place] = value
        return weakref.ref(tensor, lambda _: self._known.pop(place, None))

    def _known_value(self, tensor: Tensor) -> Value | None:
        value = self._known.get(id(tensor))
        return value if value is not None and value.now() is tensor else None

    def value(self, tensor: Tensor) -> Value:
        """The value that a tensor is, or the start of others."""
        value = self._known_value(tensor)
        return self._add(tensor, "", (), False, None, None, False) if value is None else value

    def _add(
        self,
        tensor: Tensor,
        name: str,
        parents: tuple[Value, ...],
        bends: bool,
        key: Key | None,
        operation: Operation | None,
        emitted: bool,
    ) -> Value:
        sources = [source for parent in parents if (source := parent.tensor()) is not None and source is not tensor]
        kept = () if emitted and not self._survey else tuple(sources)
        value = Value(weakref.ref(tensor), _version(tensor), name, parents, kept, bends, key)
        value.tensor = self._remember(tensor, value)
        if operation is not None:
            value.gated, value.base = operation.gated, operation.base
        common = _common(parents)
        value.line = (*common, value) if len(common) < LONGEST else (value,)
        if self._survey:
            value.name = "" if parents else self._named(tensor) or ""
            for parent in {id(parent): parent for parent in parents}.values():
                parent.children.append(value)
            value.kept = (*kept, tensor)
            self.values.append(value)
        return value

    # --- what a survey makes of it ---

    def quiet(self, whole: Iterable[Value]) -> set[Key]:
        """The keys of activations inside others, except inside what is read as a ``whole`` module."""
        left_out = set(map(id, whole))
        values = [value for value in self.values if id(value) not in left_out]
        while True:
            inside = _inside(values)
            # A power of an activation, or a multiple of one, is another activation only if nothing else uses that one.
            alone = [v for v in values if v.gated is not None and v.base is not None and id(v.base) not in inside]
            if not alone:
                return {v.key for v in values if v.key is not None and (id(v) in inside or v.void)}
            for value in alone:
                value.gated, value.void = None, True
                if value.base is not None:
                    value.base.outside = True

    def unknown(self) -> set[str]:
        """Modules from whose outputs element-wise functions that are no known activations lead to weights."""
        found = set()
        for value in self.values:
            between = list(value.between(value.line[0])) if value.weighted else []
            if any(own.bends for own in between) and not any(own.key for own in between):
                found.add(value.line[0].name)
        return found - {""}


def _common(values: Sequence[Value]) -> list[Value]:
    """The tensors through which all ways to some values pass."""
    lines = zip(*(value.line for value in values), strict=False)
    return [first for first, *others in lines if all(first is other for other in others)]


def _inside(values: list[Value]) -> set[int]:
    """Ids of the values that only activations written by hand use, of which they are no fields themselves."""
    gates: dict[int, set[int]] = {}  # by value: the activations that it ends in
    interior = {id(v): set(map(id, v.between(v.gated))) - {id(v)} for v in values if v.gated is not None}
    inside: set[int] = set()
    for value in reversed(values):
        own: set[int] = set()
        closed = bool(value.children) and not value.outside
        for child in value.children:
            if child.gated is not None:
                own.add(id(child))
            elif id(child) in inside:
                own |= gates[id(child)]
            else:
                closed = False
        if closed and all(id(value) in interior.get(gate, ()) for gate in own):
            inside.add(id(value))
            gates[id(value)] = own
    return inside


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _hides(args: Any) -> bool:
    """Whether ``masked_fill`` hides entries from a softmax: an attention mask."""
    fill = args[2] if len(args) > 2 else 0
    return isinstance(fill, int | float) and fill <= HIDDEN
