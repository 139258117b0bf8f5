"""Trainings and servers on a CPU with huge pages.

XLA allocates the buffers of a step anew in every step, and the kernel maps and clears their pages again: a quarter of
the processor time of small trainings, a tenth of that of decoding. glibc asks for huge pages only if `GLIBC_TUNABLES`
says so at process start.
"""

import os
import platform
import sys
from pathlib import Path

from seed_jax.startup import backends

_VARIABLE = "GLIBC_TUNABLES"
_TUNABLE = "glibc.malloc.hugetlb=1"  # madvise(MADV_HUGEPAGE) for what malloc maps
_FIRST_GLIBC = (2, 35)


def restart_with_huge_pages() -> None:
    """Replace this process by the same command with huge pages, where they help; otherwise return.

    Call it first in a process that trains or serves. Process id, open files and working directory stay. Nothing happens
    with an accelerator, with another C library than glibc 2.35 or later, where the kernel forbids huge pages, or where
    `GLIBC_TUNABLES` is set, even to nothing.
    """
    if _VARIABLE not in os.environ and is_useful():
        command = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, command, {**os.environ, _VARIABLE: _TUNABLE})


def is_useful(
    devices: Path = Path("/dev"), setting: Path = Path("/sys/kernel/mm/transparent_hugepage/enabled")
) -> bool:
    """Return whether XLA runs on the CPU here, and glibc and kernel know huge pages.

    Args:
        devices: directory of device files.
        setting: the kernel's modes of huge pages, the chosen one in brackets.
    """
    if sys.platform != "linux" or not sys.executable or backends.has_accelerator(devices):
        return False
    library, version = platform.libc_ver()
    if library != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < _FIRST_GLIBC:
        return False
    try:
        return "[never]" not in setting.read_text()
    except OSError:
        return False
