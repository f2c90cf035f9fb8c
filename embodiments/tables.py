"""Nested tables (TOML) to frozen dataclasses and back: unknown, missing and mistyped keys are errors."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from wamserve.action_codec.errors import ContractError

T = TypeVar("T")


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


def build(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """A dataclass from a table; `where` names the table in errors, e.g. "droid_lerobot.model"."""
    if not isinstance(table, Mapping):
        raise ContractError(f"{where} is not a table", seen=repr(table))
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in table:
        if key not in fields:
            near = get_close_matches(key, fields, n=1)
            raise ContractError(
                f"unknown key {key!r} in {where}",
                expected=", ".join(fields),
                fix=f"{key} -> {near[0]}" if near else f"remove {key!r}",
            )
    hints = _hints(cls)  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in table:
            values[name] = _value(hints[name], table[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ContractError(
                f"missing key {name!r} in {where}", seen=", ".join(table), expected=", ".join(fields)
            )
    return cls(**values)


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        present = [arg for arg in args if arg is not type(None)]
        return _value(present[0], value, where)  # a TOML file cannot hold None: absent means None
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)  # type: ignore[arg-type]
    if origin is Literal:
        if value not in args:
            raise ContractError(f"{where} is not a known choice", seen=repr(value), expected=" | ".join(args))
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ContractError(f"{where} is not a list", seen=repr(value))
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_value(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        if len(value) != len(args):
            raise ContractError(f"{where} has a wrong length", seen=len(value), expected=len(args))
        return tuple(
            _value(arg, item, f"{where}[{i}]") for i, (arg, item) in enumerate(zip(args, value, strict=True))
        )
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value) + 0.0  # + 0.0 turns -0.0 into 0.0: one number, one canonical form
    if isinstance(hint, type) and type(value) is hint:
        return value
    raise ContractError(
        f"{where} has a wrong type", seen=repr(value), expected=getattr(hint, "__name__", hint)
    )


def canonical(noun: Any) -> str:
    """The one text of a dataclass: JSON, sorted keys, no spaces, shortest float forms."""
    return json.dumps(dataclasses.asdict(noun), sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def sha256(noun: Any) -> str:
    """sha256 of the canonical form, hex."""
    return hashlib.sha256(canonical(noun).encode()).hexdigest()


def flat(noun: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted field names to leaf values; items that carry a name are keyed by it, not by position."""
    if dataclasses.is_dataclass(noun):
        items = [(f.name, getattr(noun, f.name)) for f in dataclasses.fields(noun)]
    elif isinstance(noun, tuple) and noun and dataclasses.is_dataclass(noun[0]):
        items = [(getattr(item, "name", str(i)), item) for i, item in enumerate(noun)]
    else:
        return {prefix: noun}
    leaves: dict[str, Any] = {}
    for name, value in items:
        leaves |= flat(value, f"{prefix}.{name}" if prefix else name)
    return leaves
