"""Configs as plain JSON values, and their fields by name."""

import dataclasses
import functools
import json
import typing
from collections.abc import Iterator
from typing import Any

from jaxcyto.config import Scales


def field_paths(kind: Any) -> Iterator[str]:
    """Every field of a config's class, dotted: data.brains, optim.learning_rate, ..."""
    types = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        yield field.name
        if dataclasses.is_dataclass(types[field.name]):
            yield from (f"{field.name}.{deeper}" for deeper in field_paths(types[field.name]))


def to_json(value: Any) -> Any:
    """A config as plain JSON values; functions become "module:name" (with partial's arguments)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: to_json(getattr(value, field.name)) for field in fields}
    if isinstance(value, functools.partial):
        return {"function": to_json(value.func), **to_json(value.keywords)}
    if callable(value):
        named = value if hasattr(value, "__qualname__") else type(value)
        return f"{named.__module__}:{named.__qualname__}"
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def scales_from_json(table: dict[str, Any]) -> Scales:
    """The `scales` of a config.json.

    Raises:
        TypeError, ValueError, OverflowError: they are not such numbers.
    """

    def number(key: str, value: Any) -> float:
        if not isinstance(value, int | float):
            raise TypeError(f"{key} = {value!r} is no number")
        return float(value)

    values: dict[str, Any] = {
        key: tuple(number(key, v) for v in value) if isinstance(value, list) else number(key, value)
        for key, value in table.items()
    }
    return Scales(**values)


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """Fields in which two `to_json` values differ, as "field: old -> new"."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in sorted(old.keys() | new.keys())
            for line in differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
        ]
    same = json.dumps(old) == json.dumps(new)
    return [] if same else [f"{where}: {json.dumps(old)} -> {json.dumps(new)}"]
