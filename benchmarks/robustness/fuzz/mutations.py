"""Mutate the bytes, text or JSON of a valid file.

A mutation is a function of a random.Random and the file's bytes that returns changed bytes. The
mutations that know a binary format are in `containers.py`.
"""

import copy
import json
import random
import re
from collections.abc import Callable
from typing import Any

Mutation = Callable[[random.Random, bytes], bytes]

EDGES = (0, 1, 2, 3, 7, 127, 128, 255, 256, 32767, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32,
         2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1, -1, -2, -(2**31), -(2**63))  # fmt: skip
WORDS = (
    *map(str, EDGES),
    *("", " ", "0.5", "-0", "1e9", "1e308", "1e999", "-1e-320", "nan", "inf", "-inf", "NaN"),
    *("9" * 400, "9" * 5000, "0x10", "1_0", "\u0663", "true", "null", "None", "..", ".", "../x"),
    *("../../../../etc/passwd", "/etc/passwd", "/dev/zero", "link", "a/../../b", "\0", "\r", "\n"),
    *("\xe9", "\ufeff", "\u202e", "'", '"', '""', "#", ",", ";", "\\", "[", "]", "{", "}", "<"),
    *("&", "&amp;", "&lol;", "<!--", "]]>", "%s", "[" * 3000, '{"a":' * 3000, "A" * 70000),
)
VALUES: tuple[Any, ...] = (
    None, True, False, [], {}, [[]], "", "x", "..", "/etc/passwd", 0.5, float("nan"), float("inf"),
    1e308, 10**30, "9" * 400, [1, "x"], {"name": 1}, *EDGES,
)  # fmt: skip


def edge(rng: random.Random, size: int) -> bytes:
    """Draw an extreme integer as `size` bytes, in little or big endian."""
    value = rng.choice(EDGES) + rng.choice((0, 0, 0, -1, 1))
    return (value % (1 << 8 * size)).to_bytes(size, rng.choice(("little", "big")))


def in_bytes(rng: random.Random, data: bytes) -> bytes:
    """Mutate bytes by flips, extremes, cuts, repetitions, swaps and insertions, a few at once."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        # Headers come first in most formats, so changes of the first bytes are made more likely.
        reach = min(len(out), rng.choice((16, 64, 512, 1 << 30)))
        at = rng.randrange(reach) if reach else 0
        length = min(rng.choice((1, 2, 4, 8, 64, 1024)), len(out) - at)
        other = rng.randrange(len(out)) if out else 0
        match rng.randrange(9):
            case 0 | 1 if out:
                out[at] ^= 1 << rng.randrange(8)
            case 2 | 3:
                extreme = edge(rng, rng.choice((1, 2, 4, 8)))
                out[at : at + len(extreme)] = extreme
            case 4:
                del out[rng.choice((at, other)) :]
            case 5:
                del out[at : at + length]
            case 6:
                out[at:at] = out[other : other + length] * rng.choice((1, 1, 2, 100))
            case 7:
                out[at : at + length], out[other : other + length] = (
                    out[other : other + length],
                    out[at : at + length],
                )
            case _:
                out[at:at] = rng.randbytes(length)
    return bytes(out)


def in_text(rng: random.Random, data: bytes) -> bytes:
    """Replace words by extremes, insert words, and swap, repeat or remove lines and fields."""
    text = data.decode("utf-8", "surrogateescape")
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        kind = rng.randrange(6)
        if kind < 3:  # replace one word or number
            words = list(re.finditer(r'"[^"\n]*"|[\w.+-]+', text[: 1 << 16]))
            if words:
                old = rng.choice(words)
                word = rng.choice(WORDS)
                if old[0][:1] == '"' and rng.random() < 0.8:
                    word = f'"{word}"'
                text = text[: old.start()] + word + text[old.end() :]
        elif kind == 3:
            at = rng.randrange(len(text) + 1)
            text = text[:at] + rng.choice(WORDS) + text[at:]
        else:  # change the pieces between line ends, commas or blanks
            mark = rng.choice(("\n", "\n", ",", " ", "="))
            parts = text.split(mark)
            a, b = rng.randrange(len(parts)), rng.randrange(len(parts))
            match rng.randrange(4):
                case 0:
                    parts[a], parts[b] = parts[b], parts[a]
                case 1:
                    del parts[a]
                case 2:
                    parts[a:a] = [parts[b]] * rng.choice((1, 1, 300))
                case _:
                    del parts[a:]
            text = mark.join(parts)
    return text.encode("utf-8", "surrogateescape")


def in_json(rng: random.Random, data: bytes) -> bytes:
    """Replace or remove one or two values. The result is still JSON."""
    content = json.loads(data)
    for _ in range(rng.choice((1, 1, 2))):
        places: list[tuple[Any, Any]] = []
        todo = [content]
        while todo:
            node = todo.pop()
            keys = list(node) if isinstance(node, dict) else []
            keys = range(len(node)) if isinstance(node, list) else keys
            places += [(node, key) for key in keys]
            todo += [node[key] for key in keys]
        if not places:
            return json.dumps(rng.choice(VALUES)).encode()
        (node, key), (from_node, from_key) = rng.choice(places), rng.choice(places)
        match rng.randrange(4):
            case 0:
                del node[key]
            case 1:  # a copy, because the content must not contain itself
                node[key] = copy.deepcopy(from_node[from_key])
            case _:
                node[key] = copy.deepcopy(rng.choice(VALUES))
    return json.dumps(content).encode()
