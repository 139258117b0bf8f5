"""One tiny model, and one server process, for all tests of serving."""

import openai
import pytest

from seed_jax.inference.seed_llama import SeedLlama
from tests.support.servers import ServerProcess, write_tiny_bundle

API_KEY = "key-of-the-tests"


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def model(bundle):
    """Return what `seed-jax generate` runs, to compare answers with."""
    return SeedLlama.load(bundle)


@pytest.fixture(scope="session")
def server(bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    (folder / "allowed").mkdir()
    # One batch size of images: every further one is compiled at start; `images/workers_test.py` has batches of several.
    arguments = [
        "--model", bundle, "--name", "tiny", "--slots", 4, "--max-queue", 4, "--encode-batch", 1, "--draw-batch", 1,
        "--max-body", "512KiB", "--max-images", 4, "--max-beams", 2, "--allow-images-from", folder / "allowed",
    ]  # fmt: skip
    process = ServerProcess(folder / "log", *arguments, SEED_JAX_API_KEY=API_KEY)
    process.http.headers["Authorization"] = f"Bearer {API_KEY}"
    process.allowed = folder / "allowed"
    yield process
    process.stop()


@pytest.fixture(scope="session")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0, timeout=120)
