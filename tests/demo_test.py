"""The demo data of the `:tiny` configs: complete, reused, and with held-out images."""

import numpy as np

from seed_jax import demo, images
from seed_jax.data.shards.shards import open_shards


def test_pairs_demo_is_made_once_and_holds_out_other_crops(tmp_path):
    pairs = demo.prepare_pairs_demo(tmp_path / "demo")
    trained, held_out = open_shards(pairs.shards), open_shards(pairs.held_out)
    assert len(trained) == 6 * len(demo.CAPTIONS)
    assert len(held_out) == len(demo.CAPTIONS)
    pixels = [np.asarray(images.load(record.items[0])) for record in trained]
    for record in held_out:
        held_out_pixels = np.asarray(images.load(record.items[0]))
        assert not any(np.array_equal(held_out_pixels, image) for image in pixels)
    before = pairs.vocabulary.stat().st_mtime_ns
    assert demo.prepare_pairs_demo(tmp_path / "demo") == pairs
    assert pairs.vocabulary.stat().st_mtime_ns == before
