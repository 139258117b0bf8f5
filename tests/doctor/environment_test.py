"""What is reported of packages and of the hub."""

import importlib.metadata

import pytest
from huggingface_hub import constants

from seed_jax.doctor import environment
from tests.hub.servers import Server


class Distribution:
    def get_all(self, _):
        return ["decoder", "tpu"]


@pytest.fixture
def requirements(monkeypatch):
    """Let the package require what a test lists."""
    installed = {"numpy": "2.1", "jax": "0.10.2", "diffusers": "0.30", "gcsfs": "2024.2"}
    wanted = [
        "numpy<3,>=2.0", "absent-package>=1", 'diffusers<0.40,>=0.39; extra == "decoder"',
        'jax[tpu]>=0.10.2; extra == "tpu"', 'gcsfs>=2024.1; extra == "tpu"',
    ]  # fmt: skip

    def version(name):
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    nested = {"seed-jax": wanted, "jax": ["jaxlib", 'libtpu>=0.0.20; extra == "tpu"']}
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: nested.get(name, []))
    monkeypatch.setattr(importlib.metadata, "metadata", lambda _: Distribution())
    return nested


def test_missing_and_unsupported_packages_come_from_the_metadata(requirements):
    packages = environment.packages()
    assert packages["core"] == {"installed": {"numpy": "2.1"}, "missing": ["absent-package"], "unsupported": []}
    assert packages["decoder"]["missing"] == []
    assert packages["decoder"]["unsupported"] == ["diffusers 0.30, expected <0.40,>=0.39"]
    assert packages["tpu"]["missing"] == ["jax[tpu]"]  # libtpu is not installed
    assert packages["tpu"]["installed"] == {"gcsfs": "2024.2"}


def test_a_checkout_without_metadata_is_described(requirements, monkeypatch):
    def requires(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    assert environment.packages() == {}


def test_the_hub_is_asked_for_one_file(monkeypatch):
    server = Server()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    server.files["AILab-CVC/seed-tokenizer-2/tokenizer_config.json"] = b"{}"
    assert environment.network()["reachable"]
    assert [request.method for request in server.requests] == ["HEAD"]
    server.close()
    assert not environment.network()["reachable"]
