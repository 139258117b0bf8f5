"""The original's pre-training mixture as data: six parts (spec D.3, `multi_torchdata_pretrain.yaml`).

`weight`, `batch_size`, `max_length` and `cycles` are the original's numbers. Its weight is the probability that the
next whole batch comes from a pipe, so the share of the samples is weight * batch_size / sum
(`data/batches/mixture_config.py`):

| part | weight | batch | share of samples | of batches |
|---|---|---|---|---|
| Unsplash, CC3M, COCO captions | 0.5 | 116 | 5.6 % | 5 % |
| LAION-COCO | 5.0 | 164 | 78.8 % | 50 % |
| MMC4 | 2.0 | 26 | 5.0 % | 20 % |
| OBELICS | 1.0 | 26 | 2.5 % | 10 % |
| WebVid-10M, 4 frames | 0.5 | 116 | 5.6 % | 5 % |
| Wikipedia 20220301.en | 1.0 | 26 | 2.5 % | 10 % |

One deviation: where `max_length` would cut an image in half, the image is left out (`whole_images`). With
`"continued": True` in the params of the documents and the text, what is over `max_length` is trained too.

Shards are made by, for example,

    seed-jax data build --source webdataset --from laion_coco/ --out data/laion_coco --model models/seed_tokenizer \
        --min-similarity 0.25 --min-size 180 --max-aspect 1.82
"""

from typing import Any


def parts(root: str = "data") -> tuple[dict[str, Any], ...]:
    """Return the parts, whose shards lie below `root`."""
    captions = [f"{root}/{name}" for name in ("unsplash", "cc3m", "coco_captions")]
    return (
        _part(captions, "image_text_pair", 0.5, 116, 7, max_length=200, reverse_ratio=0.5),
        _part(f"{root}/laion_coco", "image_text_pair", 5.0, 164, 2, max_length=140, reverse_ratio=0.5),
        _part(f"{root}/mmc4", "interleaved", 2.0, 26, 3, max_length=1024, reverse_ratio=0.5, max_images=7),
        _part(f"{root}/obelics", "interleaved", 1.0, 26, 1, max_length=1024, reverse_ratio=0.0, max_images=7),
        _part(f"{root}/webvid", "video_caption", 0.5, 116, 5, max_length=200, num_frames=4),
        _part(f"{root}/wikipedia", "text", 1.0, 26, 3, max_length=1024),
    )


def _part(
    path: str | list[str], task: str, weight: float, batch_size: int, cycles: int, **params: Any
) -> dict[str, Any]:
    return {
        "path": path,
        "task": f"pretrain.{task}",
        "weight": weight,
        "batch_size": batch_size,
        "cycles": cycles,
        "params": {"whole_images": True, **params},
    }
