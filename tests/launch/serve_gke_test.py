"""launch/serve_gke.sh: what Kubernetes is told about servers, and that it fits what the server does."""

import re

import pytest
import yaml

from seed_jax.cli import build_parser
from tests.launch.stubs import ROOT, Stubs

OPTIONS = ["--name=seed", "--image=registry/serve:1", "--accelerator=v5e-4", "--bucket=b", "--secret=keys"]
SERVER = ["--", "--model=/models/m", "--tensor-parallel=4"]


@pytest.fixture
def stubs(tmp_path):
    return Stubs(tmp_path)


def render(stubs, *options, server=SERVER):
    done = stubs.run("launch/serve_gke.sh", "render", *OPTIONS, *options, *server)
    assert done.returncode == 0, done.stderr
    assert "${" not in done.stdout
    return list(yaml.safe_load_all(done.stdout))


def test_a_deployment_of_single_hosts_and_its_service(stubs):
    deployment, service = render(stubs, "--replicas=3", "--namespace=team", "--spot")
    assert (deployment["kind"], service["kind"]) == ("Deployment", "Service")
    assert {one["metadata"]["namespace"] for one in (deployment, service)} == {"team"}
    assert deployment["spec"]["replicas"] == 3
    pod = deployment["spec"]["template"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    (container,) = pod["spec"]["containers"]
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    assert pod["spec"]["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "2x2",
        "cloud.google.com/gke-spot": "true",
    }
    assert service["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]


def test_the_server_understands_its_flags_and_has_time_to_shut_down(stubs):
    deployment, _ = render(stubs)
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    args = build_parser("serve").parse_args(["serve", *container["args"]])
    assert (str(args.model), args.tensor_parallel) == ("/models/m", 4)
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > pause + args.shutdown_timeout
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["path"] == "/health"
    assert container["envFrom"] == [{"secretRef": {"name": "keys"}}]  # the key is in no flag


def test_run_applies_the_manifest(stubs):
    stubs.behave("kubectl", 'cat >"$dir/applied"\n')
    assert stubs.run("launch/serve_gke.sh", "run", *OPTIONS, *SERVER).returncode == 0
    assert stubs.calls() == [["kubectl", "apply", "-f", "-"]]
    assert list(yaml.safe_load_all((stubs.folder / "applied").read_text(encoding="utf-8"))) == render(stubs)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["apply"], "'apply' is not a command"),
        (["run"], "--name is missing"),
        (["run", "--name=seed", "--image=i"], "--accelerator is missing"),
        (["run", *OPTIONS, "--accelerator=v5e-64", *SERVER], "has 16 hosts"),
        (["run", *OPTIONS, "--", "--model=elsewhere"], "--model is missing"),
        (["run", *OPTIONS, "--secret=", *SERVER], "--secret is missing"),
    ],
)
def test_bad_options_are_one_sentence_and_no_call(stubs, arguments, sentence):
    done = stubs.run("launch/serve_gke.sh", *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert stubs.calls() == []


def test_the_template_is_yaml_and_every_gap_is_filled():
    text = (ROOT / "launch/serve_gke.yaml").read_text(encoding="utf-8")
    gaps = set(re.findall(r"\$\{(\w+)\}", text))
    filled = set(re.findall(r"^  fill (\w+)", (ROOT / "launch/serve_gke.sh").read_text(encoding="utf-8"), re.MULTILINE))
    assert gaps == filled
