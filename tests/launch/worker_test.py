"""launch/worker.sh, for real: a training in the background whose exit code is known afterwards; and a pod of two."""

import shutil
import subprocess
import time

import pytest

from tests.launch.stubs import ROOT, Stubs

# Stands in for `python -m seed_jax.main`: writes what it was given, and ends as --exit=CODE or --until=SIGNAL tell it.
TRAINING = r"""#!/usr/bin/env bash
echo "training: $* ${KEY-}"
case "$*" in
  *--until=SIGTERM*) trap 'echo saved; exit 75' TERM; while true; do sleep 0.05; done ;;
  *--until=SIGKILL*) trap '' TERM; while true; do sleep 0.05; done ;;
  *--exit=*) for word in "$@"; do [[ $word != --exit=* ]] || exit "${word#--exit=}"; done ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout whose interpreter is the stand-in; nothing of it is left running."""
    folder = tmp_path / "seed_jax"
    (folder / ".venv/bin").mkdir(parents=True)
    shutil.copytree(ROOT / "launch", folder / "launch")
    (folder / "setup.py").write_text("", encoding="utf-8")
    python = folder / ".venv/bin/python"
    python.write_text(TRAINING, encoding="utf-8")
    python.chmod(0o755)
    yield folder
    worker(folder, "wait", "0")


def worker(checkout, *arguments, **environment):
    home = {"HOME": str(checkout.parent), "PATH": "/usr/local/bin:/usr/bin:/bin"}
    return subprocess.run(
        ["bash", str(checkout / "launch/worker.sh"), *arguments],
        env=home | environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def log(checkout):
    return (checkout / "runs/worker/log").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", ["0", "1", "2", "75"])
def test_the_exit_code_is_told(checkout, code):
    assert worker(checkout, "start", "--name=two words", f"--exit={code}").stdout.startswith("seed_jax start: process")
    assert worker(checkout, "wait", "20").stdout == f"seed_jax exit {code}\n"
    assert log(checkout) == f"training: -m seed_jax.main --name=two words --exit={code} \n"
    assert worker(checkout, "running").returncode == 1


def test_a_second_start_leaves_the_first_alone(checkout):
    worker(checkout, "start", "--until=SIGTERM")
    assert worker(checkout, "running").returncode == 0
    assert worker(checkout, "start", "--exit=0").stdout == "seed_jax start: it runs already\n"
    assert "--exit" not in log(checkout)


def test_stop_lets_it_save(checkout):
    worker(checkout, "start", "--until=SIGTERM")
    until(lambda: "training" in log(checkout))
    assert worker(checkout, "stop", "20").returncode == 0
    assert log(checkout).endswith("saved\n")
    assert worker(checkout, "wait", "20").stdout == "seed_jax exit stopped\n"
    worker(checkout, "start", "--exit=0")  # and starting again forgets it
    assert worker(checkout, "wait", "20").stdout == "seed_jax exit 0\n"


def test_what_does_not_end_is_killed(checkout):
    worker(checkout, "start", "--until=SIGKILL")
    until(lambda: "training" in log(checkout))
    assert worker(checkout, "wait", "0").stdout == "seed_jax exit 137\n"
    assert worker(checkout, "running").returncode == 1


def test_logs_end_with_the_training(checkout):
    worker(checkout, "start", "--until=SIGTERM")
    until(lambda: "training" in log(checkout))
    command = ["bash", str(checkout / "launch/worker.sh"), "logs", "+1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout.readline().startswith("training")
        worker(checkout, "stop", "20")
        assert follower.stdout.read() == "saved\n"
    assert worker(checkout, "logs", "+1").stdout == log(checkout)


def test_a_number_that_belongs_to_another_process_is_not_the_training(checkout):
    (checkout / "runs/worker").mkdir(parents=True)
    (checkout / "runs/worker/pid").write_text("1\n", encoding="utf-8")  # as after a reboot
    assert worker(checkout, "running").returncode == 1
    assert worker(checkout, "wait", "20").stdout == "seed_jax exit 137\n"


def test_the_environment_comes_from_a_file(checkout):
    (checkout.parent / "seed_jax.env").write_text("KEY=secret\n", encoding="utf-8")
    worker(checkout, "start", "--exit=0")
    worker(checkout, "wait", "20")
    assert log(checkout).endswith("secret\n")


def test_install_runs_once_for_each_setup(checkout, tmp_path):
    stand_in = tmp_path / ".local/bin/uv"
    stand_in.parent.mkdir(parents=True)
    stand_in.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/uv\n', encoding="utf-8")
    stand_in.chmod(0o755)
    for extras in ("tpu", "tpu", "tpu,demo"):
        assert worker(checkout, "install", extras).returncode == 0
    once = (
        "venv --quiet --allow-existing --python >=3.11 .venv\npip install --quiet --python .venv/bin/python -e .[{}]\n"
    )
    assert (tmp_path / "uv").read_text(encoding="utf-8") == once.format("tpu") + once.format("tpu,demo")


def test_a_pod_of_two_hosts_is_preempted_and_finishes(tmp_path):
    """All of launch/tpu_vm.sh and launch/worker.sh; gcloud's ssh and scp reach two home folders on this machine."""
    stubs = Stubs(tmp_path)
    hosts = [stubs.folder / f"host{number}" for number in range(2)]
    for host in hosts:
        (host / ".local/bin").mkdir(parents=True)
        # What `uv venv` leaves here is a training that is preempted the first time.
        python = '#!/usr/bin/env bash\necho "training $*"\n[ -e ~/saved ] || { touch ~/saved; exit 75; }\n'
        (host / "python").write_text(python, encoding="utf-8")
        uv = host / ".local/bin/uv"
        uv.write_text(
            "#!/usr/bin/env bash\nmkdir -p .venv/bin && install -m 755 ~/python .venv/bin/python\n", encoding="utf-8"
        )
        uv.chmod(0o755)
    stubs.answer("describe", "0 ACTIVE")
    stubs.behave("scp", 'for host in "$dir"/host?; do cp "$5" "$host/"; done; exit 0\n')
    ssh = r"""
    for word in "$@"; do
      case $word in --worker=*) on=${word#--worker=} ;; --command=*) command=${word#--command=} ;; esac
    done
    [ "$on" = all ] && on=?
    for host in "$dir"/host$on; do (cd "$host" && HOME=$PWD bash -c "$command") || exit; done
    exit 0
    """
    for kind in ("running", "install", "start", "logs", "wait"):
        stubs.behave(kind, ssh)
    options = ["--name=seed", "--project=p", "--zone=z", "--accelerator=v5e-16", "--poll=0"]
    done = stubs.run("launch/tpu_vm.sh", "run", *options, "--", "--config=c", "--workdir=gs://b/r")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "training -m seed_jax.main --config=c --workdir=gs://b/r\n" * 2
    assert "saved; starting again (failures 0/3, preemptions 1/100)" in done.stderr
    assert all((host / "seed_jax/seed_jax/main.py").exists() for host in hosts)
