"""Train: `python -m seed_jax.main --config=configs/pretrain.py[:variant] --workdir=DIR [--config.key=value]`.

Run the same command again to resume. Exit codes: 0 trained; 2 bad input, one sentence on stderr; 75 stopped by SIGTERM
after saving. This file is intentionally short.
"""

import logging
import re
import sys

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from seed_jax import distributed
from seed_jax.errors import UserError

EXIT_BAD_INPUT = 2

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "What to run, e.g. configs/pretrain.py:tiny.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, metrics and the trained model.")


def main(argv: list[str]) -> None:
    del argv
    _set_up_log()
    from seed_jax.quickstart import recipe  # late: bad flags are reported without waiting for jax
    from seed_jax.train import loop

    distributed.initialize()  # before any backend is touched; does nothing on a single host
    several = _CONFIG.value.stage == recipe.STAGE
    (recipe.run if several else loop.run)(_CONFIG.value, workdir=_WORKDIR.value)


def _set_up_log() -> None:
    """Show our own messages with the time of day; of the libraries, warnings only."""
    absl_logging.get_absl_handler().setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.getLogger().setLevel(logging.INFO)
    for library in ("absl", "jax"):
        logging.getLogger(library).setLevel(logging.WARNING)


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the command line and load the config; whatever is wrong with either becomes one sentence."""
    try:
        rest = flags.FLAGS(argv)
        _ = _CONFIG.value.stage  # a config file that cannot be read says so only when it is looked into
    except flags.Error as error:
        raise UserError(f"{str(error).strip().removeprefix('flag ')} (see --helpshort).") from error
    except (AttributeError, KeyError) as error:
        raise UserError(_unknown_key(argv, str(error.args[0]))) from error
    except OSError as error:
        raise UserError(
            f"--config cannot be loaded: {str(error).split('Attempted')[-1].split()[-1]} is missing."
        ) from error
    return rest


def _unknown_key(argv: list[str], message: str) -> str:
    """Name the override that ml_collections refused: it tells the last part of the key, and a near one if it knows."""
    key, *near = re.findall(r"\w+", message.replace("\\n", " ").replace("Did you mean", "").replace("instead of", ""))
    named = [word.split("=")[0] for word in argv if re.match(rf"--config\.([\w.]+\.)?{key}(=|$)", word)]
    hint = f", did you mean {near[0]}?" if near else "; see the config file for its keys."
    return f"{named[0] if named else key} is not a key of the config{hint}"


def cli() -> None:
    """Run `main`, with one sentence and exit code 2 for bad input."""
    flags.mark_flags_as_required(["config", "workdir"])
    try:
        app.run(main, flags_parser=parse_flags)
    except UserError as error:
        print(f"seed_jax: {error}", file=sys.stderr)
        distributed.leave(EXIT_BAD_INPUT)


if __name__ == "__main__":
    cli()
