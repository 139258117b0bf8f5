"""Train: `python -m seed_jax.main --config=configs/pretrain.py[:variant] [--workdir=DIR] [--config.key=value]`.

`--config=pretrain:tiny` names a packaged config from any directory; the workdir is `runs/<config>[_<variant>]` unless
given. `--no-cache` compiles everything anew.
Run the same command again to resume. Exit codes: 0 trained; 2 bad input, one sentence on stderr; 75 stopped by SIGTERM
after saving; 76 the run hangs, lost a host, or finds its workdir in use: start it again.
"""

import ast
import functools
import logging
import re
import sys
import traceback
from pathlib import Path
from typing import Any

import ml_collections
from absl import app, flags
from absl import logging as absl_logging
from etils import epath
from ml_collections import config_flags

from seed_jax import backends, compilation_cache, distributed
from seed_jax.errors import UserError
from seed_jax.files import describe, is_permanent
from seed_jax.terminal import PrintableFormatter, error_line, escaped_stdout
from seed_jax.train.config import loading

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file or name of a packaged config, with a variant, e.g. pretrain:tiny.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of checkpoints, metrics and the trained model (default: runs/<config>[_<variant>])."
)


def main(argv: list[str]) -> None:
    """Train as the flags specify."""
    del argv
    set_up_log()
    name = config_flags.get_config_filename(flags.FLAGS["config"])
    run(_CONFIG.value, _WORKDIR.value or loading.default_workdir(name))


def run(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> None:
    """Train one stage, or the stages of a recipe; run the tasks of an evaluation.

    Raises:
        UserError: bad input.
        SystemExit: with code 75 after SIGTERM, once the state is saved.
    """
    # JAX is imported here, so that errors in flags and configs are reported without waiting for it.
    from seed_jax.emoji.config import STAGE as EMOJI
    from seed_jax.quickstart.config import STAGE as RECIPE
    from seed_jax.train.config.evaluation import STAGE as EVALUATION

    stage = config.get("stage")
    if stage == EVALUATION:
        from seed_jax import evaluate

        start = functools.partial(evaluate.run, config, str(workdir))  # the hosts split the samples
    elif stage == RECIPE:
        from seed_jax.quickstart import recipe

        start = functools.partial(recipe.run, config, str(workdir))
    elif stage == EMOJI:
        from seed_jax.emoji import recipe as emoji_recipe

        start = functools.partial(emoji_recipe.run, config, str(workdir))
    else:
        from seed_jax.train import loop
        from seed_jax.train.stages import registry

        start = functools.partial(loop.train, registry.parse_config(config), workdir)
    logging.info("Workdir: %s", workdir)
    distributed.initialize()  # before any backend is used; does nothing on a single host
    start()


def set_up_log() -> None:
    """Show our own messages with the time of day; of libraries, warnings only."""
    absl_logging.get_absl_handler().setFormatter(PrintableFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.captureWarnings(True)
    logging.getLogger().setLevel(logging.INFO)
    for library in ("absl", "jax"):
        logging.getLogger(library).setLevel(logging.WARNING)


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the command line and load the config; anything wrong with either becomes one sentence."""
    argv, file = _resolve_config(compilation_cache.configure(argv))
    try:
        if file is not None:
            _check_config_file(file)
        rest = flags.FLAGS(argv)
        if _CONFIG.value is None:
            raise UserError("--config is missing: give a config file or a packaged config such as pretrain:tiny.")
        _ = _CONFIG.value.stage  # an unreadable config raises only when it is accessed
    except flags.Error as error:
        raise UserError(f"{str(error).strip().removeprefix('flag ')} (see --helpshort).") from error
    except UserError:
        raise
    except Exception as error:
        if file is not None and _raised_in(error, file):
            raise UserError(f"Config {file} cannot be read: {loading.describe_config_error(error, file)}.") from error
        raise _flag_error(argv, error) from error
    return rest


def _flag_error(argv: list[str], error: Exception) -> Exception:
    """Return what to raise for an error of ml_collections in reading the flags."""
    if isinstance(error, AttributeError | KeyError):
        return UserError(_unknown_option(argv, str(error.args[0])))
    if isinstance(error, ValueError | TypeError):
        return UserError(f"{_overridden(argv, str(error))} ({str(error).strip().splitlines()[0]}).")
    return error


def _check_config_file(file: Path) -> None:
    """Raise UserError unless a file is Python in UTF-8 and defines get_config."""
    with loading.config_errors_named(file):
        ast.parse(file.read_bytes(), str(file))
    if b"get_config" not in file.read_bytes():
        raise UserError(f"Config {file} has no get_config function.")


def _raised_in(error: Exception, file: Path) -> bool:
    return any(Path(frame.filename) == file for frame in traceback.extract_tb(error.__traceback__))


def _resolve_config(argv: list[str]) -> tuple[list[str], Path | None]:
    """Replace the name of a packaged config by its file; return the file, too."""
    resolved, file = list(argv), None
    for index, argument in enumerate(argv):
        match = re.fullmatch(r"--?config(=(.*))?", argument)
        if match and (match[1] or index + 1 < len(argv)):
            name = match[2] if match[1] else argv[index + 1]
            file, variant = loading.resolve(name)
            path = f"{file}:{variant}" if variant else str(file)
            if match[1]:
                resolved[index] = f"--config={path}"
            else:
                resolved[index + 1] = path
    return resolved, file


def _unknown_option(argv: list[str], message: str) -> str:
    """Name the override that ml_collections refused; its message has the last part of the key and maybe a near one."""
    key, *near = re.findall(r"\w+", message.replace("\\n", " ").replace("Did you mean", "").replace("instead of", ""))
    hint = f", did you mean {near[0]}?" if near else "; see the config file for its options."
    return f"{_overridden(argv, key)} is not an option of the config{hint}"


def _overridden(argv: list[str], key: str) -> str:
    named: Any = [word.split("=")[0] for word in argv if re.match(rf"--config\.([\w.]+\.)?{re.escape(key)}(=|$)", word)]
    return named[0] if named else key


def cli() -> None:
    """Run `main`, with one sentence and exit code 2 for bad input."""
    backends.skip_absent_tpus()
    try:
        with escaped_stdout():
            app.run(main, flags_parser=parse_flags)
    except UserError as error:
        print(error_line("seed_jax", error), file=sys.stderr)
        distributed.exit_process(error.exit_code)
    except OSError as error:
        if not is_permanent(error):
            raise  # such as a lost connection: launchers start the run again
        print(error_line("seed_jax", f"{describe(error)}."), file=sys.stderr)
        distributed.exit_process(UserError.exit_code)


if __name__ == "__main__":
    cli()
