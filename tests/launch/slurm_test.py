"""launch/slurm.sh submits; launch/slurm.sbatch trains, goes back into the queue, starts again or stops."""

import pytest

from tests.launch.stubs import ROOT, Stubs

TRAINING = ["--", "--config=configs/pretrain.py:8b", "--workdir=/shared/run", "--config.note=two words"]
JOB = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}
SRUN = ["srun", "--label", "--kill-on-bad-exit=0", "--wait=120"]
RECORD = ["bash", "launch/worker.sh", "record", "runs/slurm-7/task-"]
STEP = [*SRUN, *RECORD, ".venv/bin/python", "-m", "seed_jax.main", *TRAINING[1:]]
REQUEUE = ["scontrol", "requeue", "7"]
# Runs the command once for each task; `python` ends as told, and srun with the highest code, which says nothing.
TASKS = r"""
while [ "$1" != bash ]; do shift; done
for task in 0 1; do SLURM_PROCID=$task "$@"; done
exit 143
"""


@pytest.fixture
def stubs(tmp_path):
    """A Slurm job of two tasks, in a checkout of its own."""
    stubs = Stubs(tmp_path)
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    stubs.behave("srun", TASKS)
    return stubs


def train(stubs, codes, *options, **environment):
    """Run the job; the codes are those with which the tasks end, one after the other."""
    python = stubs.folder / "bin" / "train"
    queue = stubs.folder / "codes"
    queue.write_text("".join(f"{code}\n" for code in codes), encoding="utf-8")
    next_code = (
        f'code=$(head -n 1 {queue}); sed -i 1d {queue}; [ "$code" != killed ] || kill -KILL $PPID; exit "$code"\n'
    )
    python.write_text(f'#!/usr/bin/env bash\necho "$@" >>{stubs.folder}/trained\n{next_code}', encoding="utf-8")
    python.chmod(0o755)
    arguments = [str(ROOT / "launch/slurm.sbatch"), f"--python={python}", *options, *TRAINING]
    return stubs.run(*arguments, cwd=stubs.folder, **(JOB | environment))


def steps(stubs):
    return [call if call[0] != "srun" else "train" for call in stubs.calls()]


def test_submitting(stubs):
    options = [
        "--nodes=2",
        "--gpus-per-node=4",
        "--time=24:00:00",
        "--partition=gpu",
        "--account=a",
        "--cpus-per-task=12",
    ]
    assert stubs.run("launch/slurm.sh", *options, "--sbatch-flags=--qos=q --exclusive", *TRAINING).returncode == 0
    request = ["--time=24:00:00", "--qos=q", "--exclusive", "--nodes=2", "--gpus-per-node=4", "--ntasks-per-node=4"]
    place = [f"--chdir={ROOT}", "--partition=gpu", "--account=a", "--cpus-per-task=12"]
    job = ["launch/slurm.sbatch", "--max-requeues=100", "--max-failures=3"]
    assert stubs.calls() == [["sbatch", *request, *place, *job, *TRAINING]]


def test_keys_and_container_are_handed_to_the_job(stubs, tmp_path):
    keys = tmp_path / "keys.env"
    keys.write_text("KEY=secret\n", encoding="utf-8")
    options = ["--time=1:00:00", f"--env-file={keys}", "--container=i:1", "--python=py"]
    assert stubs.run("launch/slurm.sh", *options, *TRAINING).returncode == 0
    (call,) = stubs.calls()
    assert call[call.index("launch/slurm.sbatch") + 3 :] == [
        "--python=py",
        f"--env-file={keys}",
        "--container=i:1",
        *TRAINING,
    ]


def test_a_training_that_ends_well(stubs):
    stubs.behave("srun", "")
    stubs.run(str(ROOT / "launch/slurm.sbatch"), "--max-failures=1", *TRAINING, cwd=stubs.folder, **JOB)
    assert stubs.calls()[0] == STEP
    (stubs.folder / "calls").unlink()
    stubs.behave("srun", TASKS)
    assert train(stubs, [0, 0]).returncode == 0
    assert steps(stubs) == ["train"]
    arguments = (stubs.folder / "trained").read_text(encoding="utf-8")
    assert arguments == f"-m seed_jax.main {' '.join(TRAINING[1:])}\n" * 2


def test_saved_goes_back_into_the_queue(stubs):
    done = train(stubs, [75, 75])
    assert done.returncode == 75
    assert steps(stubs) == ["train", REQUEUE]


def test_saved_but_not_to_be_queued_again(stubs):
    stubs.answer("scontrol", "1 Requested operation is presently disabled")
    done = train(stubs, [75, 75])
    assert done.returncode == 75
    assert steps(stubs) == ["train", REQUEUE]
    assert "not queued again; submit it again to continue" in done.stderr


def test_going_back_is_bounded(stubs):
    done = train(stubs, [75, 75], "--max-requeues=3", SLURM_RESTART_COUNT="3")
    assert done.returncode == 75
    assert steps(stubs) == ["train"]
    assert "submit it again to continue" in done.stderr


@pytest.mark.parametrize("codes", [[2, 2], [134, 2], [2, "killed"]])
def test_bad_input_of_any_task_is_not_tried_again(stubs, codes):
    done = train(stubs, codes)
    assert done.returncode == 2
    assert steps(stubs) == ["train"]
    assert "refused its input" in done.stderr


def test_a_failure_is_tried_again_so_many_times(stubs):
    done = train(stubs, [1, 134, 0, "killed", 1, 1], "--max-failures=2")
    assert done.returncode == 1
    assert steps(stubs) == ["train"] * 3
    assert "failed 3 times (--max-failures=2)" in done.stderr


def test_a_failure_may_be_followed_by_anything(stubs):
    assert train(stubs, [1, 134, 75, 75]).returncode == 75
    assert steps(stubs) == ["train", "train", REQUEUE]


def test_the_environment_of_the_tasks(stubs):
    keys = stubs.folder / "keys.env"
    keys.write_text("KEY='two words'\n", encoding="utf-8")
    stubs.behave("srun", 'echo "$KEY|$SRUN_CPUS_PER_TASK" >"$dir/seen"\n' + TASKS)
    assert train(stubs, [0, 0], f"--env-file={keys}", SLURM_CPUS_PER_TASK="12").returncode == 0
    assert (stubs.folder / "seen").read_text(encoding="utf-8") == "two words|12\n"
    assert not any("two words" in word for word in stubs.calls()[0][:-1])


def test_a_container_brings_its_own_python(stubs):
    stubs.run(str(ROOT / "launch/slurm.sbatch"), "--container=i:1", "--dry-run", *TRAINING, cwd=stubs.folder, **JOB)
    done = stubs.run(str(ROOT / "launch/slurm.sbatch"), "--container=i:1", "--dry-run", *TRAINING, cwd=stubs.folder)
    here = stubs.folder
    mounts = f"--container-image=i:1 --container-mounts={here}:{here} --container-workdir={here}"
    assert f"{mounts} bash launch/worker.sh record runs/slurm-JOB/task- python -m seed_jax.main" in done.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "sentence"),
    [
        ("slurm.sh", TRAINING, "--time is missing: give the limit of one stay on the nodes"),
        ("slurm.sh", ["--time=1:00:00", "--nodes=0", *TRAINING], "--nodes=0 is not a positive whole number"),
        ("slurm.sh", ["--time=1:00:00", "--node=1", *TRAINING], "--node=1 is not an option here"),
        ("slurm.sh", ["--time=1:00:00"], "--config is missing"),
        ("slurm.sbatch", ["--", "--config=c"], "--workdir is missing"),
        ("slurm.sbatch", ["--env-file=nowhere", *TRAINING], "--env-file=nowhere is not a file"),
    ],
)
def test_bad_options_are_one_sentence_and_no_call(stubs, script, arguments, sentence):
    done = stubs.run(f"launch/{script}", *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert stubs.calls() == []


def test_submitted_from_elsewhere_is_told(stubs):
    (stubs.folder / "launch").unlink()
    done = stubs.run(str(ROOT / "launch/slurm.sbatch"), *TRAINING, cwd=stubs.folder)
    assert done.returncode == 2
    assert "submit it from the root of the checkout" in done.stderr
