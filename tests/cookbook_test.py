"""The Python of docs/cookbook.md, on a tiny model with random weights."""

import pytest
from PIL import Image

from tests.support.pages import blocks
from tests.support.servers import write_tiny_bundle


@pytest.mark.slow
def test_python_of_the_cookbook_draws_four_images(tmp_path, monkeypatch):
    (program,) = blocks("docs/cookbook.md", "python")
    bundle = write_tiny_bundle(tmp_path)
    assert "models/8b" in program
    monkeypatch.chdir(tmp_path)
    exec(program.replace("models/8b", str(bundle)), {})
    images = [Image.open(tmp_path / f"cat_{number}.png") for number in range(4)]
    assert len({image.tobytes() for image in images}) == 4
