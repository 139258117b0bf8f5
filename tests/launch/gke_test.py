"""launch/gke.sh: the manifest says what is to happen at which exit code, and the commands are kubectl's and xpk's."""

import re

import pytest
import yaml

from tests.launch.stubs import ROOT, Stubs

OPTIONS = ["--name=seed", "--image=registry/seed_jax:tpu", "--accelerator=v5e-64"]
TRAINING = ["--", "--config=configs/pretrain.py:8b", "--workdir=gs://b/run"]
XPK = ["--xpk", "--cluster=c", "--project=p", "--zone=z"]


@pytest.fixture
def stubs(tmp_path):
    return Stubs(tmp_path)


def render(stubs, *options, training=TRAINING):
    done = stubs.run("launch/gke.sh", "render", *OPTIONS, *options, *training)
    assert done.returncode == 0, done.stderr
    assert "${" not in done.stdout
    return yaml.safe_load(done.stdout)


def pods(manifest):
    return manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def test_slices_and_hosts(stubs):
    manifest = render(stubs, "--num-slices=2", "--namespace=team")
    assert manifest["metadata"]["name"] == "seed"
    assert manifest["metadata"]["namespace"] == "team"
    (slices,) = manifest["spec"]["replicatedJobs"]
    assert slices["replicas"] == 2
    hosts = slices["template"]["spec"]
    assert (hosts["parallelism"], hosts["completions"], hosts["backoffLimit"]) == (16, 16, 0)
    assert pods(manifest)["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "8x8",
    }
    (container,) = pods(manifest)["containers"]
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    assert container["args"] == TRAINING[1:]
    assert "envFrom" not in container


@pytest.mark.parametrize(
    ("accelerator", "label", "topology", "hosts", "chips"),
    [
        ("v5e-8", "tpu-v5-lite-podslice", "2x4", 1, 8),
        ("v5e:16x16", "tpu-v5-lite-podslice", "16x16", 64, 4),
        ("v4-32", "tpu-v4-podslice", "2x2x4", 4, 4),
        ("v5p:4x4x4", "tpu-v5p-slice", "4x4x4", 16, 4),
        ("v6e-1", "tpu-v6e-slice", "1x1", 1, 1),
        ("v6e-16", "tpu-v6e-slice", "4x4", 4, 4),
    ],
)
def test_accelerators_are_named_as_gke_names_them(stubs, accelerator, label, topology, hosts, chips):
    manifest = render(stubs, f"--accelerator={accelerator}")
    assert list(pods(manifest)["nodeSelector"].values()) == [label, topology]
    assert manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["completions"] == hosts
    assert pods(manifest)["containers"][0]["resources"]["limits"]["google.com/tpu"] == chips


@pytest.mark.parametrize(
    ("code", "action"),
    [(2, "FailJobSet"), (75, "RestartJobSetAndIgnoreMaxRestarts"), (1, "RestartJobSet"), (137, "RestartJobSet")],
)
def test_what_happens_at_an_exit_code(stubs, code, action):
    """Follow an exit code through the rules of the Job and those of the JobSet, as the two controllers do."""
    manifest = render(stubs, "--max-failures=5")
    policy = manifest["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 5
    rules = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    matching = [index for index, rule in enumerate(rules) if code in rule.get("onExitCodes", {}).get("values", [])]
    reason = "PodFailurePolicy" if matching else "BackoffLimitExceeded"
    # The Job controller's words (kubernetes/pkg/controller/job/pod_failure_policy.go).
    message = f"Container seed-jax for pod default/seed-0 failed with exit code {code} matching FailJob rule at index 0"
    taken = "RestartJobSet"  # what a JobSet does where no rule matches
    for rule in reversed(policy["rules"]):
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(re.search(pattern, message) for pattern in patterns):
            taken = rule["action"]
    assert taken == action
    assert pods(manifest)["restartPolicy"] == "Never"  # without it, Kubernetes refuses a podFailurePolicy


def test_a_node_that_is_taken_away_does_not_count_as_a_failure(stubs):
    manifest = render(stubs)
    rules = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    assert rules[-1] == {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert all(rule["onExitCodes"]["containerName"] == pods(manifest)["containers"][0]["name"] for rule in rules[:-1])


def test_options_of_the_cluster(stubs):
    manifest = render(stubs, "--spot", "--queue=lq", "--secret=keys")
    assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "lq"
    assert pods(manifest)["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pods(manifest)["containers"][0]["envFrom"] == [{"secretRef": {"name": "keys"}}]


def test_arguments_arrive_as_they_were_given(stubs):
    odd = [
        "--",
        "--config=c",
        "--workdir=gs://b/r",
        r'--config.note=a "quoted" & \c $HOME # it\'s: {x}',
        "--config.empty=",
    ]
    assert pods(render(stubs, training=odd))["containers"][0]["args"] == odd[1:]


def test_run_applies_the_manifest(stubs):
    stubs.behave("kubectl", 'cat >"$dir/applied"\n')
    assert stubs.run("launch/gke.sh", "run", *OPTIONS, *TRAINING).returncode == 0
    assert stubs.calls() == [["kubectl", "apply", "-f", "-"]]
    assert yaml.safe_load((stubs.folder / "applied").read_text(encoding="utf-8")) == render(stubs)


def test_run_and_delete_through_xpk(stubs, tmp_path):
    keys = tmp_path / "keys.env"
    keys.write_text("WANDB_API_KEY=secret\n", encoding="utf-8")
    assert (
        stubs.run("launch/gke.sh", "run", *OPTIONS, *XPK, "--num-slices=2", f"--env-file={keys}", *TRAINING).returncode
        == 0
    )
    assert stubs.run("launch/gke.sh", "delete", "--name=seed", *XPK).returncode == 0
    place = [*XPK[1:], "--workload=seed"]
    shape = ["--tpu-type=v5litepod-64", "--num-slices=2", "--docker-image=registry/seed_jax:tpu"]
    policy = ["--max-restarts=3", "--restart-on-exit-codes=1,75,76", "--termination-grace-period-seconds=600"]
    command = "--command=exec python -m seed_jax.main --config=configs/pretrain.py:8b --workdir=gs://b/run"
    assert stubs.calls() == [
        ["xpk", "workload", "create", *place, *shape, *policy, f"--env-file={keys}", command],
        ["xpk", "workload", "delete", *place],
    ]


@pytest.mark.parametrize(
    ("command", "calls"),
    [
        (
            "logs",
            [
                "wait pod --selector={first} --for=condition=Ready --timeout=1h",
                "logs --follow --tail=-1 --selector={first}",
            ],
        ),
        ("status", ["get jobset seed", "get pods --selector=jobset.sigs.k8s.io/jobset-name=seed --output=wide"]),
        ("delete", ["delete jobset seed"]),
    ],
)
def test_the_other_commands_are_a_call_or_two(stubs, command, calls):
    assert stubs.run("launch/gke.sh", command, "--name=seed").returncode == 0
    labels = (
        "jobset.sigs.k8s.io/jobset-name=seed,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
    )
    assert stubs.calls() == [["kubectl", "--namespace=default", *call.format(first=labels).split()] for call in calls]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["apply"], "'apply' is not a command: expected run, render, logs, status or delete"),
        (["run"], "--name is missing"),
        (["run", "--name=Seed_1"], "--name=Seed_1 is not possible"),
        (["run", "--name=seed"], "--image is missing"),
        (["run", "--name=seed", "--image=i"], "--accelerator is missing"),
        (["run", *OPTIONS, "--accelerator=h100-8", *TRAINING], "--accelerator=h100-8 is not known"),
        (
            ["run", *OPTIONS, "--accelerator=v5e-8", "--num-slices=2", *TRAINING],
            "--num-slices=2 needs an --accelerator of several",
        ),
        (["run", *OPTIONS, "--", "--config=c", "--workdir=/data"], "--workdir must be gs://...: pods keep nothing"),
        (["run", *OPTIONS, "--xpk", *TRAINING], "--cluster is missing"),
        (["run", *OPTIONS, *XPK, "--secret=s", *TRAINING], "--secret does not work with --xpk"),
        (["run", *OPTIONS, "--env-file=f", *TRAINING], "--env-file and --cluster work with --xpk only"),
    ],
)
def test_bad_options_are_one_sentence_and_no_call(stubs, arguments, sentence):
    done = stubs.run("launch/gke.sh", *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert stubs.calls() == []


def test_the_template_is_yaml_and_every_gap_is_filled():
    text = (ROOT / "launch/gke_jobset.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text)["kind"] == "JobSet"
    gaps = set(re.findall(r"\$\{(\w+)\}", text))
    filled = set(re.findall(r"^  fill (\w+)", (ROOT / "launch/gke.sh").read_text(encoding="utf-8"), re.MULTILINE))
    assert gaps == filled
