"""Mutate the content of containers, behind checks that random bytes would never pass.

Headers are rewritten with a matching length, and payloads are unpacked, changed and packed again.
"""

import base64
import io
import json
import math
import random
import re
import struct
import zipfile
import zlib

from benchmarks.robustness.fuzz.mutations import EDGES, WORDS, edge, in_bytes, in_json, in_text

DTYPES = (
    *("|O", "<f8", "<f4", "<f2", "<i4", "<i8", "<u8", "|b1", "<c16", "<U9999999", "|S0", "|V0"),
    *("<M8[s]", "<m8[99Y]", "x", ">f4"),
)
CHUNKS = (b"zTXt", b"iCCP", b"iTXt", b"tRNS", b"PLTE", b"acTL", b"eXIf", b"gAMA", b"pHYs")
GIFTI_WORDS = (
    *("NIFTI_TYPE_INT32", "NIFTI_TYPE_FLOAT32", "NIFTI_TYPE_UINT8", "NIFTI_TYPE_RGB24"),
    *("NIFTI_TYPE_COMPLEX256", "NIFTI_TYPE_FLOAT64", "ColumnMajorOrder", "BigEndian", "ASCII"),
    *("ExternalFileBinary", "Base64Binary", "NIFTI_INTENT_TRIANGLE", "NIFTI_INTENT_NONE"),
)


def in_npy(rng: random.Random, data: bytes) -> bytes:
    """Rewrite the header of a .npy array, or change one of its values."""
    if rng.random() < 0.4 or not data.startswith(b"\x93NUMPY\x01"):
        return in_bytes(rng, data)
    length = int.from_bytes(data[8:10], "little")
    header, values = data[10 : 10 + length].decode("latin-1"), data[10 + length :]
    if rng.random() < 0.3:
        value = rng.choice((math.nan, math.inf, -1.0, 1e30))
        words = edge(rng, 8), struct.pack("<d", value), struct.pack("<f", value) * 2
        at = min(rng.randrange(len(values) + 1) // 8 * 8, max(0, len(values) - 8))
        values = values[:at] + rng.choice(words) + values[at + 8 :]
    elif rng.random() < 0.5:
        kind = rng.choice(DTYPES)
        header = re.sub(r"'descr': '[^']*'", f"'descr': '{kind}'", header)
    else:
        shape = ", ".join(str(rng.choice(EDGES)) for _ in range(rng.choice((0, 1, 2, 2, 3, 40))))
        header = re.sub(r"'shape': \([^)]*\)", f"'shape': ({shape}{',' * bool(shape)})", header)
    if rng.random() < 0.1:
        header = in_text(rng, header.encode()).decode("latin-1")
    head = header.encode("latin-1", "replace")[:65535]
    return b"\x93NUMPY\x01\0" + len(head).to_bytes(2, "little") + head + values


def in_npz(rng: random.Random, data: bytes) -> bytes:
    """Change, rename, swap, remove or compress members, or set fields of the zip headers."""
    out = bytearray(data)
    if rng.random() < 0.25:
        starts = [
            m.start() for m in re.finditer(rng.choice((b"PK\1\2", b"PK\3\4", b"PK\5\6")), data)
        ]
        if starts:  # (offset, length) of fields of the three kinds of zip header
            fields = (
                (8, 2),
                (10, 2),
                (16, 4),
                (18, 4),
                (20, 4),
                (24, 4),
                (26, 2),
                (28, 2),
                (42, 4),
            )
            offset, size = rng.choice(fields)
            at = rng.choice(starts) + offset
            out[at : at + size] = edge(rng, size)
        return bytes(out)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    names = list(members)
    name, other = rng.choice(names), rng.choice(names)
    match rng.randrange(12):
        case 0:
            del members[name]
        case 1:
            members[name], members[other] = members[other], members[name]
        case 2:
            members[rng.choice(("../x.npy", "/etc/x.npy", "x", f"{name}.npy"))] = members.pop(name)
        case 3:
            members[name] = b""
        case _:
            members[name] = in_npy(rng, members[name])
    stream = io.BytesIO()
    method = rng.choice((zipfile.ZIP_STORED,) * 4 + (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(stream, "w", method) as archive:
        for key, value in members.items():
            archive.writestr(key, value)
    return stream.getvalue()


def in_gifti(rng: random.Random, data: bytes) -> bytes:
    """Change a packed payload, add a declaration before the root, or replace an attribute."""
    kind = rng.randrange(6)
    blocks = list(re.finditer(rb"<Data>([^<]*)</Data>", data))
    if kind < 3 and blocks:
        block = rng.choice(blocks)
        payload = zlib.decompress(base64.b64decode(block[1]))
        payload = rng.choice((in_bytes, in_bytes, lambda rng, data: data * rng.choice((0, 2, 1000)))
                             )(rng, payload)[: 1 << 22]  # fmt: skip
        packed = base64.b64encode(zlib.compress(payload, 1))
        return data[: block.start(1)] + packed + data[block.end(1) :]
    if kind == 3:
        entity = rng.choice((b'<!ENTITY e "x">', b'<!ENTITY e SYSTEM "file:///etc/passwd">',
                             b'<!ENTITY % e SYSTEM "http://127.0.0.1/x"> %e;'))  # fmt: skip
        data = re.sub(rb"<GIFTI", b"<!DOCTYPE GIFTI [" + entity + b"]><GIFTI", data, count=1)
        return data.replace(b"</Data>", b"&e;</Data>", rng.randrange(2))
    attribute = rng.choice(list(re.finditer(rb'"([^"]*)"', data)))
    word = rng.choice((*WORDS, *GIFTI_WORDS, *GIFTI_WORDS)).encode()
    return data[: attribute.start(1)] + word + data[attribute.end(1) :]


def in_tiff(rng: random.Random, data: bytes) -> bytes:
    """Set a field of a TIFF entry, or a value it points to, to an extreme or another's value."""
    out = bytearray(data)
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack(order + "H", data[2:4])[0] == 43
    count, pointer, size = ("Q", "Q", 20) if big else ("H", "I", 12)
    entries, pages = [], [struct.unpack_from(order + pointer, data, 8 if big else 4)[0]]
    while pages and len(entries) < 500:
        page = pages.pop()
        if not page:
            continue
        length = struct.unpack_from(order + count, data, page)[0]
        first = page + struct.calcsize(order + count)
        own = [first + size * k for k in range(length)]
        entries += own
        pages.append(struct.unpack_from(order + pointer, data, first + size * length)[0])
        for entry in own:
            if struct.unpack_from(order + "H", data, entry)[0] == 330:  # SubIFDs: follow the first
                where = struct.unpack_from(order + pointer, data, entry + (12 if big else 8))[0]
                few = struct.unpack_from(order + pointer, data, entry + 4)[0] > 1
                pages.append(struct.unpack_from(order + pointer, data, where)[0] if few else where)
    width = 8 if big else 4
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        entry, other = rng.choice(entries), rng.choice(entries)
        match rng.randrange(6):
            case 0:
                out[entry + 2 : entry + 4] = struct.pack(
                    order + "H", rng.choice((*range(19), 65535))
                )
            case 1:
                out[entry + 4 : entry + 4 + width] = edge(rng, width)
            case 2 | 3:
                value = rng.choice((*EDGES, *range(16), len(data), len(data) - 8, 34712, 50000))
                packed = struct.pack(order + ("Q" if big else "I"), value % (1 << 8 * width))
                if order == ">" and value < 1 << 16:  # SHORT values fill the first two bytes
                    packed = struct.pack(">H", value) + bytes(width - 2)
                out[entry + 4 + width : entry + size] = packed
            case 4:
                at = entry + 4 + width
                out[at : at + width], out[other + 4 + width : other + size] = (
                    out[other + 4 + width : other + size], out[at : at + width])  # fmt: skip
            case _:
                where = struct.unpack_from(order + pointer, data, entry + 4 + width)[0]
                if where + 8 < len(out):
                    extreme = edge(rng, rng.choice((2, 4, 8)))
                    out[where : where + len(extreme)] = extreme
    return bytes(out)


def in_png(rng: random.Random, data: bytes) -> bytes:
    """Change, repeat, remove or insert a PNG chunk, with a matching checksum."""
    chunks, offset = [], 8
    while offset + 12 <= len(data):
        length = int.from_bytes(data[offset : offset + 4])
        chunks.append((data[offset + 4 : offset + 8], data[offset + 8 : offset + 8 + length]))
        offset += 12 + length
    at, other = rng.randrange(len(chunks)), rng.randrange(len(chunks))
    kind, body = chunks[at]
    match rng.randrange(8):
        case 0:
            del chunks[at]
        case 1:
            chunks.insert(at, chunks[other])
        case 2:
            bomb = b"x\0\0" + zlib.compress(bytes(1 << 22))
            chunks.insert(1, (rng.choice(CHUNKS), rng.choice((bomb, edge(rng, 8), b""))))
        case 3:
            at = rng.choice((0, 4))  # offset of width or height
            header = chunks[0][1]
            chunks[0] = (b"IHDR", header[:at] + edge(rng, 4) + header[at + 4 :])
        case 4 if kind == b"IDAT":
            chunks[at] = (kind, zlib.compress(in_bytes(rng, zlib.decompress(body))[: 1 << 22]))
        case _:
            chunks[at] = (kind, in_bytes(rng, body))
    return data[:8] + b"".join(
        len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)
        for kind, body in chunks
    )


def in_export(rng: random.Random, data: bytes) -> bytes:
    """Change the JSON within the metadata of an export's header, with a matching length."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    table = header["__metadata__"]["jaxcyto"].encode()
    changed = rng.choice((in_json, in_json, in_text))(rng, table)
    header["__metadata__"]["jaxcyto"] = changed.decode("utf-8", "replace")
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def in_safetensors(rng: random.Random, data: bytes) -> bytes:
    """Change the JSON header of a safetensors file, with a matching length."""
    length = int.from_bytes(data[:8], "little")
    header = rng.choice((in_json, in_text))(rng, data[8 : 8 + length])
    return len(header).to_bytes(8, "little") + header + data[8 + length :]
