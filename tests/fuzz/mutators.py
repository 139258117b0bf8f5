"""Damage files at random, the same way for the same seed: bytes anywhere, and values inside well-formed containers.

A byte that is changed anywhere in an archive or a PNG is mostly found by a checksum. The containers are therefore also
opened, damaged inside and sealed again, and JSON is damaged as a tree.
"""

import gzip
import io
import json
import pickle
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import msgpack

TOKENS = (
    b"null", b"[]", b"{}", b'"', b"\xff", b"\\ud800", b"\0", b"1e999", b"-1", b"true", b"{", b"]", b"9" * 30, b"\n",
    b"\r", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"<img>", b"<image>", b"\x1b[2J", b"../", b"%s", b"NaN",
)  # fmt: skip
NUMBERS = (0, 1, -1, 2, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53, 2**63, -(2**63), 2**64)
VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "a", "\ud800", "\x1b[2J", "<image>", "../x", "http://x/a.png", "\0", "é\u2028"),
    *NUMBERS, 10**9, 10**30, 10**400, 0.5, -0.5, 1e308, float("nan"), float("inf"), -float("inf"),
    *([], {}, [[]], [None], {"": None}, {"bytes": None, "path": None}, [1, "a"], {"type": "x"}),
)  # fmt: skip
LONG = 100_000  # characters, or levels of nesting
MOST_BYTES = 1 << 22  # of a mutated file

Mutator = Callable[[bytes, random.Random, Sequence[bytes]], bytes]


def mutate_bytes(data: bytes, rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Flip bits, overwrite, insert, remove, cut off, repeat, or splice with another seed; one to four times."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        if not content:
            return bytes(rng.choice(TOKENS))
        place = rng.randrange(len(content))
        change = rng.randrange(9)
        if change == 0:
            content[place] ^= 1 << rng.randrange(8)
        elif change == 1:
            content[place] = rng.randrange(256)
        elif change == 2:
            content[place:place] = rng.choice(TOKENS)
        elif change == 3:
            del content[place : place + rng.choice((1, 2, 4, 8, 64))]
        elif change == 4:
            del content[place:]
        elif change == 5:
            content[place:place] = content[place : place + rng.choice((1, 16, 256))]
        elif change == 6:
            other = rng.choice(seeds)
            content[place:] = other[rng.randrange(len(other) + 1) :]
        elif change == 7:
            content[place : place + 4] = struct.pack(rng.choice("<>") + "I", rng.choice(NUMBERS) & 0xFFFFFFFF)
        else:
            content = _with_extreme_number(content, rng)
    return bytes(content[:MOST_BYTES])


def _with_extreme_number(content: bytearray, rng: random.Random) -> bytearray:
    """Replace a number that is written in digits, or eight bytes."""
    numbers = list(re.finditer(rb"\d+", content))
    if numbers and rng.random() < 0.8:
        match = rng.choice(numbers)
        content[match.start() : match.end()] = str(rng.choice((*NUMBERS, 10**9, 10**30))).encode()
    else:
        place = rng.randrange(len(content))
        content[place : place + 8] = struct.pack("<Q", rng.choice(NUMBERS) & (2**64 - 1))
    return content


def mutate_tree(value: Any, rng: random.Random) -> Any:
    """Change one place of a tree of dicts, lists and values."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        change = rng.random()
        if change < 0.1:
            return {name: inner for name, inner in value.items() if name != key}
        if change < 0.15:
            return {**value, rng.choice(("x", "", "\ud800", "bytes", "path", "url")): rng.choice(VALUES)}
        if change < 0.2:
            return {(f"{name}x" if name == key else name): inner for name, inner in value.items()}
        return {name: mutate_tree(inner, rng) if name == key else inner for name, inner in value.items()}
    if isinstance(value, list) and value and rng.random() < 0.85:
        place = rng.randrange(len(value))
        change = rng.random()
        if change < 0.1:
            return value[:place] + value[place + 1 :]
        if change < 0.2:
            return value[: place + 1] * rng.choice((2, 2, 40)) + value[place:]
        return [mutate_tree(inner, rng) if index == place else inner for index, inner in enumerate(value)]
    return _other_value(value, rng)


def _other_value(value: Any, rng: random.Random) -> Any:
    change = rng.random()
    if change < 0.005:
        return rng.choice(("x", "é", "<image>", "\ud83d")) * (LONG // 10)
    if change < 0.01:
        return [0] * (LONG // 10)
    if change < 0.05:
        return [value] if rng.random() < 0.5 else {"x": value}
    if isinstance(value, str) and change < 0.4:
        return mutate_bytes(value.encode("utf-8", "replace"), rng, [b"a dog"]).decode("utf-8", "replace")
    if type(value) is int and change < 0.4:
        return value + rng.choice((-1, 1, 1000))
    return rng.choice(VALUES)


def mutate_json(data: bytes, rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Change a value of a JSON file, or of one of its lines; sometimes nest deeply, repeat a key, or damage bytes."""
    lines = data.split(b"\n") if b"}\n{" in data or b"]\n[" in data else [data]
    place = rng.randrange(len(lines))
    try:
        value = json.loads(lines[place])
    except ValueError:
        return mutate_bytes(data, rng, seeds)
    change = rng.random()
    if change < 0.3:
        return mutate_bytes(data, rng, seeds)
    if change < 0.305:
        lines[place] = (b"[" if rng.random() < 0.5 else b'{"a":') * LONG
    elif change < 0.31 and isinstance(value, dict):
        lines[place] = lines[place].replace(b"{", b'{"a": 1, "a": 2, ' if value else b'{"a": 1, "a": 2', 1)
    else:
        for _ in range(rng.choice((1, 1, 2))):
            value = mutate_tree(value, rng)
        lines[place] = json.dumps(value).encode()
    return b"\n".join(lines)[:MOST_BYTES]


def mutate_msgpack(data: bytes, rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Change a value of a msgpack record."""
    if rng.random() < 0.4:
        return mutate_bytes(data, rng, seeds)
    try:
        return msgpack.packb(mutate_tree(msgpack.unpackb(data), rng), unicode_errors="surrogatepass") or b""
    except (OverflowError, ValueError, TypeError):
        return mutate_bytes(data, rng, seeds)


def mutate_pickle(data: bytes, rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Change the instructions of a pickle, or a value of what it holds."""
    if rng.random() < 0.6:
        return mutate_bytes(data, rng, seeds)
    return pickle.dumps(mutate_tree(pickle.loads(seeds[0]), rng), rng.randrange(6))


def inside_gzip(inner: Mutator) -> Mutator:
    """Return a mutator of the content of a gzip file."""

    def mutate(data: bytes, rng: random.Random, seeds: Sequence[bytes]) -> bytes:
        if rng.random() < 0.3:
            return mutate_bytes(data, rng, seeds)
        return gzip.compress(inner(gzip.decompress(data), rng, [gzip.decompress(seed) for seed in seeds]), 1)

    return mutate


def inside_zip(inner: Mutator) -> Mutator:
    """Return a mutator of a member of a zip file."""

    def mutate(data: bytes, rng: random.Random, seeds: Sequence[bytes]) -> bytes:
        if rng.random() < 0.4:
            return mutate_bytes(data, rng, seeds)
        target = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(target, "w") as mutated:
            names = archive.namelist()
            chosen = rng.choice(names)
            for entry in archive.infolist():
                content = archive.read(entry)
                if entry.filename == chosen:
                    content = inner(content, rng, [content])
                mutated.writestr(entry, content)
        return target.getvalue()

    return mutate


def mutate_tar(data: bytes, rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Change a header field of a member, with a right checksum, or the content of a member."""
    if rng.random() < 0.4:
        return mutate_bytes(data, rng, seeds)
    headers = [place for place in range(0, len(data), 512) if data[place + 257 : place + 262] == b"ustar"]
    if not headers:
        return mutate_bytes(data, rng, seeds)
    content = bytearray(data)
    start = rng.choice(headers)
    if rng.random() < 0.5:
        header = content[start : start + 512]
        field = rng.choice(((0, 100), (100, 108), (124, 136), (136, 148), (156, 157), (157, 257), (345, 500)))
        if rng.random() < 0.4:
            value = rng.choice((b"L", b"x", b"g", b"S", b"1", b"5", b"0", b"77777777777", b"-1", b"\x80\xff\xff\xff"))
        else:
            value = mutate_bytes(bytes(header[slice(*field)]), rng, [b"a"])
        length = field[1] - field[0]
        header[slice(*field)] = value[:length].ljust(length, b"\0")
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        content[start : start + 512] = header
    else:
        (size,) = (int(bytes(content[start + 124 : start + 135]).strip(b"\0 ") or b"0", 8),)
        body = mutate_json(bytes(content[start + 512 : start + 512 + size]), rng, seeds)
        content[start + 512 : start + 512 + size] = body[:size].ljust(size)
    return bytes(content)


def mutate_png(data: bytes, rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Change a chunk of a PNG file, with a right checksum; damage the bytes of other images."""
    if not data.startswith(b"\x89PNG") or rng.random() < 0.4:
        return mutate_bytes(data, rng, seeds)
    chunks, place = [], 8
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    chosen = rng.randrange(len(chunks))
    kind, body = chunks[chosen]
    if kind == b"IDAT" and rng.random() < 0.5:
        body = zlib.compress(mutate_bytes(zlib.decompress(body), rng, [b"\0" * 64]), 1)
    else:
        body = mutate_bytes(body, rng, [b"\0" * 64]) if body else rng.choice(TOKENS)
    kind = rng.choice((kind, kind, kind, b"tEXt", b"zTXt", b"iCCP", b"eXIf", b"acTL", b"fdAT"))
    chunks[chosen] = (kind, body)
    sealed = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    return data[:8] + b"".join(sealed)


def mutate_safetensors(data: bytes, rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Change the header of a safetensors file, with a right length."""
    if rng.random() < 0.4:
        return mutate_bytes(data, rng, seeds)
    (length,) = struct.unpack("<Q", data[:8])
    header = mutate_json(data[8 : 8 + length], rng, [data[8 : 8 + length]])
    return struct.pack("<Q", len(header)) + header + data[8 + length :]
