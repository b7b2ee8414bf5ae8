"""Convert configs to plain JSON values, and list and compare their fields."""

import dataclasses
import functools
import json
import typing
from collections.abc import Iterator
from typing import Any

from jaxcyto.config import Scales


def field_paths(kind: Any) -> Iterator[str]:
    """Yield the dotted name of every field of a config class, such as optim.learning_rate."""
    types = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        yield field.name
        if dataclasses.is_dataclass(types[field.name]):
            yield from (f"{field.name}.{deeper}" for deeper in field_paths(types[field.name]))


def to_json(value: Any) -> Any:
    """Convert a config to plain JSON values.

    Functions become "module:name". A `functools.partial` becomes a dict with its function and its
    keyword arguments.
    """
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
    """Create `Scales` from the field `scales` of config.json.

    Raises:
        TypeError, ValueError, OverflowError: a field is unknown, not a number or too large.
    """

    def number(key: str, value: Any) -> float:
        if not isinstance(value, int | float):
            raise TypeError(f"{key} = {value!r} is not a number")
        return float(value)

    values: dict[str, Any] = {
        key: tuple(number(key, v) for v in value) if isinstance(value, list) else number(key, value)
        for key, value in table.items()
    }
    return Scales(**values)


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """List the fields in which two results of `to_json` differ, as "field: old -> new"."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in sorted(old.keys() | new.keys())
            for line in differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
        ]
    same = json.dumps(old) == json.dumps(new)
    return [] if same else [f"{where}: {json.dumps(old)} -> {json.dumps(new)}"]
