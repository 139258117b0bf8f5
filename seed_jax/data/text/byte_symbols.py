"""The printable characters that stand for bytes in the byte-level byte-pair vocabularies of GPT-2, CLIP and OPT."""

import functools


@functools.cache
def byte_symbols() -> tuple[str, ...]:
    """Map each byte to a printable character: its Latin-1 character if printable, else the next one from 256 on."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return tuple(chr(byte if byte in visible else 256 + hidden.index(byte)) for byte in range(256))
