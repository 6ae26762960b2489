"""Freezing: plain objects to what JSON can carry, and back, as their annotated fields say.

What a restart hands over is written down by one process and read by another, perhaps of another version.  The schema is
what the classes say of themselves anyway: the annotated fields of attrs classes and named tuples.  Nothing else is ever
built, and no class is named in the text but where an annotation allows several, so a text can do no more than fill
in fields.

    bool int float str None     themselves             Enum                 the member's name
    bytes, bytearray            text, latin-1          address, Endpoint    text
    list deque set tuple        a list                 dict, Mapping        a list of pairs
    Any                         what was frozen before, as it is
    attrs class, named tuple    an object by field     A | B                [class, what becomes of it]

A field with the metadata `GIVEN` is no state but what its maker gives it (a policy, a collaborator).  An object
that has such fields is not thawed but made as ever and then filled in: `restore`.  That goes on into its parts, which
are the fields whose annotation is itself an attrs class without equality, so objects that share a part go on sharing
it.  Nothing else may be referred to twice: it would come back as two.

Tolerant where it is safe: a field that the text does not have keeps its default, so a newer version may add fields.
Everything else raises `Unthawable`, which names the place.
"""

from __future__ import annotations

import collections.abc
import types
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from enum import Enum
from functools import cache
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import attrs

from .endpoints import Endpoint, parse_address

__all__ = ["GIVEN", "Unthawable", "freeze", "restore", "thaw"]

GIVEN: Final = types.MappingProxyType({"given": True})
"""Metadata of a field that is no state."""

T = TypeVar("T")


class Unthawable(ValueError):
    """A text that is not the state of such an object; says where in it and why, and nothing of what it holds."""


class _Codec(NamedTuple):
    freeze: Callable[[Any], Any]
    thaw: Callable[[Any], Any]


def freeze(value: Any, kind: Any = None) -> Any:
    """The state of `value`, whose annotation would be `kind` (by default its class).  Raises `TypeError` for a kind
    that has no frozen form: a mistake in the program, not in data."""
    cls: Any = kind or type(value)
    return _codec(cls).freeze(value)


def thaw(frozen: Any, kind: type[T]) -> T:
    """A new value of `kind`.  Raises `Unthawable`."""
    cls: Any = kind
    thawed: T = _codec(cls).thaw(frozen)
    return thawed


def restore(thing: object, frozen: Any) -> None:
    """Fill the state into `thing`, which was made as ever.  Raises `Unthawable`; then it is of no further use."""
    cls: Any = type(thing)
    fields = _fields(cls)
    _check_fields(cls, frozen, fields)
    for name, (field, kind) in fields.items():
        if name in frozen:
            with_place = _Place(name)
            if _is_part(kind):
                with_place(restore, getattr(thing, field.name), frozen[name])
            else:
                setattr(thing, field.name, with_place(_codec(kind).thaw, frozen[name]))


class _Place(NamedTuple):
    """Says in which field something was wrong."""

    name: str

    def __call__(self, what: Callable[..., T], *arguments: Any) -> T:
        try:
            return what(*arguments)
        except Unthawable as error:
            raise Unthawable(f"{self.name}: {error}") from None


def _is_part(kind: Any) -> bool:
    return isinstance(kind, type) and attrs.has(kind) and kind.__eq__ is object.__eq__


@cache
def _fields(cls: Hashable) -> dict[str, tuple[attrs.Attribute[Any], Any]]:
    """The fields of an attrs class that are state, with their annotations, by their public names."""
    assert isinstance(cls, type)
    hints = get_type_hints(cls)
    fields = [field for field in attrs.fields(cls) if "given" not in field.metadata]
    return {field.name.lstrip("_"): (field, hints[field.name]) for field in fields}


def _check_fields(cls: type, frozen: Any, known: collections.abc.Container[str]) -> None:
    if not isinstance(frozen, dict):
        raise Unthawable(f"{_kind(frozen)} is not an object, for a {cls.__name__}")
    if not all(name in known for name in frozen):
        raise Unthawable(f"a field is there that no {cls.__name__} has")


def _kind(value: Any) -> str:
    """What sort of JSON it is, and nothing of what it says: a state may hold a password."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case str():
            return f"a string of {len(value)} characters"
        case list():
            return f"a list of {len(value)}"
        case dict():
            return "an object"
        case _:
            return "a number"


# One codec a kind


@cache
def _codec(kind: Hashable) -> _Codec:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _union(arguments)
    if origin is not None:
        return _container(kind, origin, arguments)
    if kind in _PLAIN:
        return _PLAIN[kind]
    if isinstance(kind, type):
        if issubclass(kind, Enum):
            return _enum(kind)
        if attrs.has(kind):
            return _attrs(kind)
        if issubclass(kind, tuple) and hasattr(kind, "_fields"):
            return _named_tuple(kind)
    raise TypeError(f"{kind!r} has no frozen form")


def _same(value: Any) -> Any:
    return value


def _scalar(*kinds: type) -> _Codec:
    def thaw(frozen: Any) -> Any:
        if type(frozen) not in kinds:
            raise Unthawable(f"{_kind(frozen)} is not a {kinds[0].__name__}")
        return frozen

    return _Codec(_same, thaw)


def _text(freeze: Callable[[Any], str], parse: Callable[[str], Any], what: str) -> _Codec:
    def thaw(frozen: Any) -> Any:
        try:
            if isinstance(frozen, str):
                return parse(frozen)
        except ValueError:
            pass
        raise Unthawable(f"{_kind(frozen)} is not {what}")

    return _Codec(freeze, thaw)


_ADDRESS = _text(str, parse_address, "an address")
_PLAIN: dict[Any, _Codec] = {
    bool: _scalar(bool),
    int: _scalar(int),
    float: _scalar(float, int),
    str: _scalar(str),
    types.NoneType: _scalar(types.NoneType),
    Any: _Codec(_same, _same),
    bytes: _text(lambda octets: octets.decode("latin-1"), lambda text: text.encode("latin-1"), "octets"),
    bytearray: _text(lambda octets: octets.decode("latin-1"), lambda text: bytearray(text.encode("latin-1")), "octets"),
    IPv4Address: _ADDRESS,
    IPv6Address: _ADDRESS,
    Endpoint: _text(str, Endpoint.parse, "an endpoint"),
}


def _enum(kind: type[Enum]) -> _Codec:
    def thaw(frozen: Any) -> Enum:
        if not isinstance(frozen, str) or frozen not in kind.__members__:
            raise Unthawable(f"{_kind(frozen)} is no {kind.__name__}")
        return kind[frozen]

    return _Codec(lambda member: member.name, thaw)


def _union(kinds: tuple[Any, ...]) -> _Codec:
    kinds_of_some = [kind for kind in kinds if kind is not types.NoneType]
    if set(kinds_of_some) == {IPv4Address, IPv6Address}:
        some = _ADDRESS
    elif len(kinds_of_some) == 1:
        some = _codec(kinds_of_some[0])
    else:
        some = _tagged({kind.__name__: kind for kind in kinds_of_some})
    if len(kinds_of_some) == len(kinds):
        return some
    return _Codec(
        lambda value: None if value is None else some.freeze(value),
        lambda frozen: None if frozen is None else some.thaw(frozen),
    )


def _tagged(kinds: dict[str, type]) -> _Codec:
    codecs = {name: _codec(kind) for name, kind in kinds.items()}

    def freeze(value: Any) -> list[Any]:
        name = type(value).__name__
        return [name, codecs[name].freeze(value)]

    def thaw(frozen: Any) -> Any:
        if not isinstance(frozen, list) or len(frozen) != 2 or not isinstance(frozen[0], str):
            raise Unthawable(f"{_kind(frozen)} is not a class and its state")
        if frozen[0] not in codecs:
            raise Unthawable(f"{_kind(frozen[0])} is none of {', '.join(codecs)}")
        return _Place(frozen[0])(codecs[frozen[0]].thaw, frozen[1])

    return _Codec(freeze, thaw)


_CONTAINERS: dict[Any, Callable[[Any], Any]] = {list: list, deque: deque, set: set, frozenset: frozenset, tuple: tuple}
_MAPPINGS = (dict, Mapping)


def _container(kind: Any, origin: Any, arguments: tuple[Any, ...]) -> _Codec:
    if origin is tuple and arguments[-1:] != (...,):
        return _fixed([_codec(argument) for argument in arguments], tuple)
    if origin in _MAPPINGS:
        pairs = _many(_fixed([_codec(argument) for argument in arguments], tuple), dict)
        return _Codec(lambda mapping: pairs.freeze(mapping.items()), pairs.thaw)
    if origin in _CONTAINERS:
        return _many(_codec(arguments[0]), _CONTAINERS[origin])
    raise TypeError(f"{kind!r} has no frozen form")


def _many(item: _Codec, make: Callable[[Any], Any]) -> _Codec:
    def thaw(frozen: Any) -> Any:
        if not isinstance(frozen, list):
            raise Unthawable(f"{_kind(frozen)} is not a list")
        return make([item.thaw(each) for each in frozen])

    return _Codec(lambda values: [item.freeze(each) for each in values], thaw)


def _fixed(items: list[_Codec], make: Callable[[Any], Any]) -> _Codec:
    def thaw(frozen: Any) -> Any:
        if not isinstance(frozen, list) or len(frozen) != len(items):
            raise Unthawable(f"{_kind(frozen)} is not a list of {len(items)}")
        return make([item.thaw(each) for item, each in zip(items, frozen, strict=True)])

    return _Codec(lambda values: [item.freeze(each) for item, each in zip(items, values, strict=True)], thaw)


def _named_tuple(cls: Any) -> _Codec:
    codecs: dict[str, _Codec] = {name: _codec(kind) for name, kind in get_type_hints(cls).items()}

    def thaw(frozen: Any) -> Any:
        _check_fields(cls, frozen, codecs)
        try:
            return cls(**{name: _Place(name)(codecs[name].thaw, each) for name, each in frozen.items()})
        except TypeError:
            raise Unthawable(f"a field of a {cls.__name__} is missing") from None

    def freeze(value: Any) -> dict[str, Any]:
        return {name: codec.freeze(each) for (name, codec), each in zip(codecs.items(), value, strict=True)}

    return _Codec(freeze, thaw)


def _attrs(cls: Any) -> _Codec:
    """The codecs of its fields are looked up late: a class with `GIVEN` fields is frozen here and never thawed."""
    fields = _fields(cls)

    def freeze(value: Any) -> dict[str, Any]:
        return {name: _codec(kind).freeze(getattr(value, field.name)) for name, (field, kind) in fields.items()}

    def thaw(frozen: Any) -> Any:
        _check_fields(cls, frozen, fields)
        thawed = {name: _Place(name)(_codec(fields[name][1]).thaw, each) for name, each in frozen.items()}
        try:
            made = cls(**{str(fields[name][0].alias): each for name, each in thawed.items() if fields[name][0].init})
        except TypeError:
            raise Unthawable(f"a field of a {cls.__name__} is missing") from None
        for name, each in thawed.items():
            if not fields[name][0].init:
                setattr(made, fields[name][0].name, each)
        return made

    return _Codec(freeze, thaw)
