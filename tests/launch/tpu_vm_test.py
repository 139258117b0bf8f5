"""launch/tpu_vm.sh says the right things to gcloud, in the right order, whatever happens to the training."""

import pytest

from tests.launch.stubs import Stubs

WHERE = ["--project=p", "--zone=z"]
OPTIONS = ["--name=seed", *WHERE, "--accelerator=v5e-16", "--poll=0"]
TRAINING = ["--", "--config=configs/pretrain.py:8b", "--workdir=gs://b/run", "--config.note=it's two words"]
WORKER = "bash seed_jax/launch/worker.sh"


def tpu(*words):
    return ["gcloud", "compute", "tpus", "queued-resources", *words]


def ssh(host, command):
    hosts = [f"--worker={host}", f"--node={host}", "--ssh-flag=-oServerAliveInterval=30"]
    return tpu("ssh", "seed", *WHERE, *hosts, f"--command={command}")


DESCRIBE = tpu("describe", "seed", *WHERE, "--format=value(state.state)")
REQUEST = ["--accelerator-type=v5litepod-16", "--quiet", "--runtime-version=v2-alpha-tpuv5-lite"]
CREATE = tpu("create", "seed", *WHERE, *REQUEST, "--node-id=seed")
DELETE = tpu("delete", "seed", *WHERE, "--quiet", "--force")
UNPACK = f"mkdir -p seed_jax && tar -xzf seed_jax.tar.gz -C seed_jax && {WORKER} install tpu"
INSTALL = [
    tpu("scp", "seed_jax.tar.gz", "seed:", *WHERE, "--worker=all", "--node=all", "--scp-flag=-p"),
    ssh("all", f"{WORKER} running 2>/dev/null || {{ {UNPACK}; }}"),
]
START = ssh(
    "all",
    f"{WORKER} start --config=configs/pretrain.py:8b --workdir=gs://b/run '--config.note=it'\\''s two words'",
)
FOLLOW = ssh(0, f"{WORKER} logs +1")
COLLECT = ssh("all", f"{WORKER} wait 600")
TRAIN = [*INSTALL, START, FOLLOW, COLLECT]


@pytest.fixture
def stubs(tmp_path):
    """A TPU of four hosts that is there, and a training that ends well."""
    stubs = Stubs(tmp_path)
    stubs.answer("describe", "0 ACTIVE")
    stubs.answer("start", "0 " + "\\n".join(["seed_jax start: process 1"] * 4))
    stubs.answer("wait", ended(0, 0, 0, 0))
    return stubs


def ended(*codes):
    return "0 " + "\\n".join(f"seed_jax exit {code}" for code in codes)


def run(stubs, *options):
    return stubs.run("launch/tpu_vm.sh", "run", *OPTIONS, *options, *TRAINING)


def test_run_creates_installs_trains_and_says_what_is_left(stubs):
    stubs.answer("describe", "1 ERROR: NOT_FOUND: Resource was not found", "0 PROVISIONING", "0 ACTIVE")
    done = run(stubs)
    assert done.returncode == 0
    assert stubs.calls() == [DESCRIBE, CREATE, DESCRIBE, DESCRIBE, *TRAIN]
    assert "seed is still there" in done.stderr


def test_create_asks_for_several_spot_slices(stubs):
    stubs.answer("describe", "1 ERROR: NOT_FOUND", "0 ACTIVE")
    flags = ["--num-slices=2", "--spot", "--create-flags=--network=n --internal-ips"]
    assert stubs.run("launch/tpu_vm.sh", "create", *OPTIONS, *flags).returncode == 0
    slices = ["--node-count=2", "--node-prefix=seed", "--spot", "--network=n", "--internal-ips"]
    assert stubs.calls() == [DESCRIBE, tpu("create", "seed", *WHERE, *REQUEST, *slices), DESCRIBE]


def test_direct_creates_the_vms_at_once(stubs):
    stubs.answer("describe", "1 ERROR: NOT_FOUND", "0 READY")
    assert run(stubs, "--direct").returncode == 0
    vm = ["gcloud", "compute", "tpus", "tpu-vm"]
    create = [*vm, "create", "seed", *WHERE, *REQUEST[:2], "--version=v2-alpha-tpuv5-lite"]
    assert [call for call in stubs.calls() if "create" in call] == [create]
    assert all(call[:4] == vm and "--node=all" not in call for call in stubs.calls())


@pytest.mark.parametrize(
    ("topology", "shape", "runtime"),
    [
        ("v5e:8x8", ["--accelerator-type=v5litepod-64"], "v2-alpha-tpuv5-lite"),
        ("v4-128", ["--accelerator-type=v4-128"], "tpu-ubuntu2204-base"),
        ("v5p:4x4x4", ["--accelerator-type=v5p-128"], "v2-alpha-tpuv5"),
        ("v5p:2x4x8", ["--type=v5p", "--topology=2x4x8"], "v2-alpha-tpuv5"),
        ("v6e-256", ["--accelerator-type=v6e-256"], "v2-alpha-tpuv6e"),
    ],
)
def test_accelerators_are_named_as_gcloud_names_them(stubs, topology, shape, runtime):
    stubs.answer("describe", "1 ERROR: NOT_FOUND", "0 ACTIVE")
    stubs.run("launch/tpu_vm.sh", "create", *OPTIONS, f"--accelerator={topology}")
    request = ["--quiet", f"--runtime-version={runtime}", "--node-id=seed"]
    assert stubs.calls()[1] == tpu("create", "seed", *WHERE, *shape, *request)


def test_saved_is_started_again_on_the_same_tpu(stubs):
    stubs.answer("wait", ended(75, 75, 75, 75), ended(0, 0, 0, 0))
    assert run(stubs).returncode == 0
    assert stubs.calls() == [DESCRIBE, *TRAIN, DESCRIBE, *TRAIN]


def test_preempted_is_queued_again(stubs):
    stubs.answer(
        "describe", "0 ACTIVE", "0 SUSPENDED", "0 SUSPENDED", "0 SUSPENDED", "0 WAITING_FOR_RESOURCES", "0 ACTIVE"
    )
    stubs.answer("logs", "255 connection closed", "0 log")
    stubs.answer("wait", "1 the TPU is gone", ended(0, 0, 0, 0))
    done = run(stubs)
    assert done.returncode == 0
    again = [DESCRIBE, DELETE, CREATE, DESCRIBE, DESCRIBE, *TRAIN]
    assert stubs.calls() == [DESCRIBE, *INSTALL, START, FOLLOW, DESCRIBE, COLLECT, DESCRIBE, *again]
    assert "preempted; starting again (failures 0/3, preemptions 1/100)" in done.stderr


@pytest.mark.parametrize("codes", [(2, 2, 2, 2), (2, 134, 134, 134), (75, 2, 0, 1)])
def test_bad_input_on_any_host_is_not_tried_again(stubs, codes):
    stubs.answer("wait", ended(*codes))
    done = run(stubs)
    assert done.returncode == 2
    assert stubs.calls() == [DESCRIBE, *TRAIN]
    assert "refused its input" in done.stderr


@pytest.mark.parametrize("answer", [ended(1, 134, 134, 134), ended(0, 0, 0)], ids=["crash", "a host is silent"])
def test_a_failure_is_tried_again_so_many_times(stubs, answer):
    stubs.answer("wait", answer)
    done = run(stubs, "--max-failures=2")
    assert done.returncode == 1
    # After a failure the state tells a crash from a preemption; then ensure_ready asks.
    assert stubs.calls() == [DESCRIBE, *([*TRAIN, DESCRIBE, DESCRIBE] * 2), *TRAIN, DESCRIBE]
    assert "failed 3 times (--max-failures=2)" in done.stderr


def test_failures_may_end_it_at_once(stubs):
    stubs.answer("wait", ended(1, 1, 1, 1))
    assert run(stubs, "--max-failures=0").returncode == 1
    assert stubs.calls() == [DESCRIBE, *TRAIN, DESCRIBE]


def test_preemptions_are_bounded_too(stubs):
    stubs.answer("wait", ended(75, 75, 75, 75))
    done = run(stubs, "--max-preemptions=1")
    assert done.returncode == 75
    assert stubs.calls() == [DESCRIBE, *TRAIN] * 2


def test_a_lost_connection_is_taken_up_where_it_broke(stubs):
    stubs.answer("logs", "255 connection closed", "0 log")
    assert run(stubs).returncode == 0
    assert stubs.calls() == [DESCRIBE, *INSTALL, START, FOLLOW, DESCRIBE, ssh(0, f"{WORKER} logs 10"), COLLECT]


def test_stopped_from_elsewhere_is_not_started_again(stubs):
    stubs.answer("wait", ended(*["stopped"] * 4))
    done = run(stubs)
    assert done.returncode == 0
    assert stubs.calls() == [DESCRIBE, *TRAIN]


@pytest.mark.parametrize("codes", [(0, 0, 0, 0), (2, 2, 2, 2)])
def test_delete_after_gives_the_tpu_back_however_it_ended(stubs, codes):
    stubs.answer("wait", ended(*codes))
    assert run(stubs, "--delete-after").returncode == codes[0]
    assert stubs.calls() == [DESCRIBE, *TRAIN, DELETE]


def test_a_request_that_always_fails_is_given_up(stubs):
    stubs.answer("describe", "0 FAILED")
    done = run(stubs)
    assert done.returncode == 1
    assert stubs.calls() == [*[DESCRIBE, DELETE, CREATE] * 3, DESCRIBE, DELETE]
    assert "could not be had in 3 attempts" in done.stderr


def test_a_request_that_is_refused_is_made_three_times(stubs):
    stubs.answer("describe", "1 ERROR: NOT_FOUND")
    stubs.answer("create", "1 ERROR: RESOURCE_EXHAUSTED: no capacity")
    done = run(stubs)
    assert done.returncode == 1
    assert stubs.calls() == [*[DESCRIBE, CREATE] * 3, DESCRIBE]
    assert "RESOURCE_EXHAUSTED" in done.stderr
    assert "could not be had in 3 attempts" in done.stderr


def test_a_request_that_is_refused_once_is_made_again(stubs):
    stubs.answer("describe", "1 ERROR: NOT_FOUND", "1 ERROR: NOT_FOUND", "0 ACTIVE")
    stubs.answer("create", "1 ERROR: RESOURCE_EXHAUSTED: no capacity", "0 ")
    assert run(stubs).returncode == 0
    assert stubs.calls() == [*[DESCRIBE, CREATE] * 2, DESCRIBE, *TRAIN]


def test_an_error_of_gcloud_is_shown_after_a_few_attempts(stubs):
    stubs.answer("describe", "1 ERROR: PERMISSION_DENIED: no access to project p")
    done = run(stubs)
    assert done.returncode == 1
    assert stubs.calls() == [DESCRIBE] * 5
    assert "PERMISSION_DENIED: no access to project p" in done.stderr


@pytest.mark.parametrize(
    ("command", "calls"),
    [
        ("logs", [ssh(0, f"{WORKER} logs +1")]),
        ("status", [DESCRIBE, ssh("all", f"{WORKER} status")]),
        ("stop", [ssh("all", f"{WORKER} stop 600")]),
        ("delete", [DELETE]),
    ],
)
def test_the_other_commands_are_a_call_or_two(stubs, command, calls):
    assert stubs.run("launch/tpu_vm.sh", command, "--name=seed", *WHERE).returncode == 0
    assert stubs.calls() == calls


def test_keys_travel_in_a_file_and_never_on_a_command_line(stubs, tmp_path):
    keys = tmp_path / "keys.env"
    keys.write_text("WANDB_API_KEY=secret\n", encoding="utf-8")
    assert run(stubs, f"--env-file={keys}").returncode == 0
    assert stubs.calls()[1][5:8] == ["seed_jax.tar.gz", "seed_jax.env", "seed:"]
    assert not any("secret" in word for call in stubs.calls() for word in call)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train"], "'train' is not a command: expected run, create, logs, status, stop or delete"),
        (["run", *WHERE], "--name is missing"),
        (["run", "--name=s", "--zone=z"], "--project is missing: give the Google Cloud project"),
        (["run", "--name=s", "--project=p"], "--zone is missing: give the zone"),
        (["run", "--name=s", *WHERE, *TRAINING], "--accelerator is missing"),
        (["run", *OPTIONS, "--accelerator=v7-8", *TRAINING], "--accelerator=v7-8 is not known: expected v4-N"),
        (
            ["run", *OPTIONS, "--accelerator=v5e-24", *TRAINING],
            "--accelerator=v5e-24 is not a size of v5e: expected one of",
        ),
        (["run", *OPTIONS, "--accelerator=v4-9", *TRAINING], "--accelerator=v4-9 is not a size of v4"),
        (["run", *OPTIONS, "--accelerator=v6e:5x5", *TRAINING], "--accelerator=v6e:5x5 is not a size of v6e"),
        (["run", *OPTIONS, "--num-slices=two", *TRAINING], "--num-slices=two is not a positive whole number"),
        (["run", *OPTIONS, "--num-slices=2", "--direct", *TRAINING], "--direct creates one slice"),
        (["run", *OPTIONS, "--spot", "--reserved", *TRAINING], "--spot and --reserved exclude each other"),
        (["run", *OPTIONS, "--env-file=nowhere", *TRAINING], "--env-file=nowhere is not a file"),
        (["run", *OPTIONS, "--zones=z", *TRAINING], "--zones=z is not an option here"),
        (
            ["run", *OPTIONS, "--config=c"],
            "--config=c is not an option here (see --help); the flags of the training stand",
        ),
        (["run", *OPTIONS, "--zone"], "--zone needs a value"),
        (["run", *OPTIONS], "--config is missing: give the flags of the training behind --"),
        (["run", *OPTIONS, "--", "--config=c"], "--workdir is missing"),
        (["run", *OPTIONS, "--", "--config=c", "--workdir=runs/x"], "--workdir must be gs://... or the absolute path"),
    ],
)
def test_bad_options_are_one_sentence_and_no_call(stubs, arguments, sentence):
    done = stubs.run("launch/tpu_vm.sh", *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert stubs.calls() == []


def test_project_and_zone_come_from_gclouds_environment(stubs):
    environment = {"CLOUDSDK_CORE_PROJECT": "p", "CLOUDSDK_COMPUTE_ZONE": "z"}
    assert stubs.run("launch/tpu_vm.sh", "delete", "--name=seed", **environment).returncode == 0
    assert stubs.calls() == [DELETE]
