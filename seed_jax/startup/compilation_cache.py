"""JAX's persistent compilation cache, on by default for the commands: a program is compiled once per machine.

Everything is set through JAX's own environment variables before JAX is imported, so that a variable that the user
sets takes precedence and subprocesses share the cache.
"""

import hashlib
import logging
import os
import platform
import tempfile
from pathlib import Path

MAX_BYTES = 2 * 2**30  # least recently used entries are deleted beyond this
MIN_COMPILE_SECONDS = 0.1
NO_CACHE = "--no-cache"
_DIRECTORY, _ENABLED = "JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"
# Fields of /proc/cpuinfo that decide which machine code XLA emits.
_CPU_FIELDS = ("vendor_id", "cpu family", "model", "flags", "CPU implementer", "CPU part", "Features")


def configure(argv: list[str], *, uses_cache: bool = True) -> list[str]:
    """Turn the cache on, or off where the arguments hold `--no-cache`; return the arguments without it.

    Args:
        argv: arguments of a command; those after `--` are left as they are.
        uses_cache: whether the command compiles programs that are worth storing.
    """
    options = argv[: argv.index("--")] if "--" in argv else argv
    if NO_CACHE not in options:
        if uses_cache:
            enable()
        return argv
    disable()
    return [word for index, word in enumerate(argv) if word != NO_CACHE or index >= len(options)]


def enable(cpuinfo: Path = Path("/proc/cpuinfo")) -> None:
    """Turn the cache on, in `$XDG_CACHE_HOME/seed_jax/xla` (default `~/.cache/seed_jax/xla`).

    Call it before JAX is imported. Each kind of processor has its own directory, because machine code of one may
    crash on another and JAX's key does not hold the processor. Where `JAX_COMPILATION_CACHE_DIR` is set, it stays.
    A directory that cannot be written is reported by a warning, and the run continues without cache.

    Args:
        cpuinfo: description of the processor.
    """
    if os.environ.get(_DIRECTORY) or os.environ.get(_ENABLED):
        return
    directory = default_directory(cpuinfo)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        reason = error.strerror or error
        logging.warning(
            "%s cannot be written (%s): programs are compiled anew at every start; set %s to another directory.",
            directory, reason, _DIRECTORY,
        )  # fmt: skip
        return
    os.environ[_DIRECTORY] = str(directory)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(MIN_COMPILE_SECONDS))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(MAX_BYTES))


def disable() -> None:
    """Turn the cache off for this process and its subprocesses; call before JAX is imported."""
    os.environ.pop(_DIRECTORY, None)
    os.environ[_ENABLED] = "false"


def default_directory(cpuinfo: Path = Path("/proc/cpuinfo")) -> Path:
    """Return the directory of this kind of processor."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "seed_jax" / "xla" / processor_key(cpuinfo)


def processor_key(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return a name of the kind of processor: the same for equal instruction sets."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        text = ""
    fields = dict(line.split(":", 1) for line in text.split("\n\n", 1)[0].splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    described = [f"{name}={fields[name]}" for name in _CPU_FIELDS if name in fields] or [platform.processor()]
    return f"{platform.machine()}-{hashlib.sha256(chr(10).join(described).encode()).hexdigest()[:12]}"
