"""Stand-ins for gcloud, kubectl, xpk and Slurm's commands: they write down how they were called, and answer as told."""

import json
import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMANDS = ("gcloud", "kubectl", "xpk", "sbatch", "srun", "scontrol", "sleep")

# Every stand-in: one line with its arguments into `calls`; then the script `behaviour/KIND`, if there is one; then the
# next answer of `answers/KIND` ("CODE TEXT"; the last one stays). KIND is told from the arguments.
STUB = r"""#!/usr/bin/env bash
dir=$(dirname "$0")/..
{ printf '%s\037' "${0##*/}" "$@"; echo; } >>"$dir/calls"
kind=${0##*/}
for word in "$@"; do
  case $word in
    describe | create | scp | delete) kind=$word ;;
    --command=*worker.sh*) kind=${word##*worker.sh } kind=${kind%% *} ;;
  esac
done
if [ -e "$dir/behaviour/$kind" ]; then . "$dir/behaviour/$kind"; fi
[ -e "$dir/answers/$kind" ] || exit 0
answer=$(head -n 1 "$dir/answers/$kind")
[ "$(wc -l <"$dir/answers/$kind")" = 1 ] || sed -i 1d "$dir/answers/$kind"
code=${answer%% *} text=${answer#* }
if [ "$code" = 0 ]; then printf '%b\n' "$text"; else printf '%b\n' "$text" >&2; fi
exit "$code"
"""


class Stubs:
    """A folder of stand-ins that comes first on the PATH."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("bin", "answers", "behaviour", "home"):
            (folder / name).mkdir()
        for name in COMMANDS:
            path = folder / "bin" / name
            path.write_text(STUB, encoding="utf-8")
            path.chmod(0o755)
        self.environment = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(folder / "home"),
            "TMPDIR": str(folder),
        }

    def answer(self, kind: str, *answers: str) -> None:
        """Set what calls of a kind answer, one after the other: "CODE TEXT", the text to stderr unless CODE is 0."""
        (self.folder / "answers" / kind).write_text("".join(f"{a}\n" for a in answers), encoding="utf-8")

    def behave(self, kind: str, script: str) -> None:
        """Run a piece of bash in calls of a kind; what it does not end with `exit` goes on to the answers."""
        (self.folder / "behaviour" / kind).write_text(script, encoding="utf-8")

    def run(self, *command: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", *command],
            cwd=cwd,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def calls(self) -> list[list[str]]:
        """Return all calls so far, temporary folders taken out; waiting (`sleep`) does not count."""
        if not (self.folder / "calls").exists():
            return []
        lines = (self.folder / "calls").read_text(encoding="utf-8").splitlines()
        calls = [re.sub(rf"{re.escape(str(self.folder))}/tmp\.\w+/", "", line).split("\037")[:-1] for line in lines]
        return [call for call in calls if call[0] != "sleep"]


def setup_table(name: str) -> dict[str, list[str]]:
    """Return a table of setup.py, without running it to its end."""
    code = (ROOT / "setup.py").read_text(encoding="utf-8").split("\nsetup(")[0]
    script = f"{code}\nimport json\nprint(json.dumps({name}))"
    found = subprocess.run(["python3", "-c", script], capture_output=True, text=True, check=True)
    return json.loads(found.stdout)
