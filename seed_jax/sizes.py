"""Amounts of memory and of storage as users write and read them.

KB, MB and GB are powers of 1000, KiB, MiB and GiB powers of 1024, as in the SI and as PyTorch and the hub use them.
"""

import re

from seed_jax.errors import UserError

_DECIMAL = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {unit: 1024**power for power, unit in enumerate(_DECIMAL)}


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 5GB, 500 MB, 16GiB, 16G (as 16GB) or 1000.

    Raises:
        UserError: the text is not a size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?))?B?", text.strip(), re.IGNORECASE)
    units = _BINARY if match and match[3] else _DECIMAL
    size = round(float(match[1]) * units[(match[2] or "").upper()]) if match else 0
    if size < 1:
        raise UserError(f"{text!r} is not a size: write a number with a unit, such as 5GB or 16GiB.")
    return size


def format_size(size: float | int) -> str:
    """Return an amount of storage with three digits and a decimal unit, such as "13.6 GB"."""
    unit = next((unit for unit in ("G", "M", "K") if size >= 0.9995 * _DECIMAL[unit]), "")
    return f"{size / _DECIMAL[unit]:.3g} {unit.replace('K', 'k')}B"


def format_memory(size: float | int) -> str:
    """Return an amount of memory with two decimals and a binary unit, such as "5.02 GiB"."""
    unit = "G" if size >= _BINARY["G"] / 10 else "M"
    return f"{size / _BINARY[unit]:.2f} {unit}iB"
