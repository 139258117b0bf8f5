"""The original's instruction mixture as data: eighteen parts (spec D.4, `multi_torchdata_sft.yaml`).

`weight`, `batch_size` and `max_length` are the original's numbers; the weights sum to 3.81. As in pre-training, a
part's share of the samples is weight * batch_size / sum, since the original draws whole batches. Its cycles are not
known; here no part ends.

Short questions get the answer-length suffix; captions are asked for with a sentence of ours. Where `max_length` would
cut an image in half, the image is left out, and a sample without any trained token left is dropped.
"""

from typing import Any

from seed_jax.data.templates import SHORT_ANSWER

CAPTION = "Please describe this image in one short sentence."
VIDEO_CAPTION = "Please describe this video in one short sentence."


def parts(root: str = "data/sft", style: str = "vicuna") -> tuple[dict[str, Any], ...]:
    """Return the parts, whose shards lie below `root`.

    Args:
        style: role markers, "vicuna" for the 8B models, "llama2" for the 14B models.
    """

    def part(names: str, task: str, weight: float, batch_size: int, max_length: int, **more: Any) -> dict[str, Any]:
        paths = [f"{root}/{name}" for name in names.split()]
        own = {key: more.pop(key) for key in ("question", "suffix") if key in more}
        params = {"max_length": max_length, "style": style, "whole_images": True, "drop_untrained": True, **more}
        path = paths if len(paths) > 1 else paths[0]
        return {
            "path": path,
            "task": f"sft.{task}",
            "weight": weight,
            "batch_size": batch_size,
            "params": params,
            **own,
        }

    short = {"suffix": SHORT_ANSWER}
    return (
        part("mimicit_cgd", "difference", 0.15, 160, 200),
        part("vist", "story", 0.08, 80, 360, reverse_ratio=0.0),
        part("magicbrush instruct_pix2pix", "edit", 0.5, 256, 100),
        part("llava_conversation", "conversation", 0.15, 60, 512),
        part("svit", "conversation", 0.2, 32, 1024),
        part("vqav2", "qa", 0.2, 256, 100, reverse_ratio=0.0, **short),
        part("okvqa vizwiz aokvqa", "qa", 0.1, 256, 100, reverse_ratio=0.0, **short),
        part("visdial", "conversation", 0.15, 80, 360),
        part("coco_captions", "qa", 0.2, 256, 100, reverse_ratio=0.5, question=CAPTION),
        part(
            "msrvtt_caption msrvtt_qa msvd_caption msvd_qa", "video_qa", 0.1, 160, 200, question=VIDEO_CAPTION, **short
        ),
        part("nextqa activitynet_qa", "video_qa", 0.15, 80, 360, **short),
        part("video_chatgpt", "video_qa", 0.2, 60, 512),
        part("llava_cc3m lrv", "visual_question", 0.4, 80, 400),
        part("journeydb", "qa", 0.5, 200, 128, reverse_ratio=-1.0),
        part("laion_aesthetic", "qa", 0.5, 256, 100, reverse_ratio=-1.0),
        part("textcaps textvqa ocrvqa", "qa", 0.1, 256, 100, reverse_ratio=0.0, question=CAPTION, **short),
        part("llavar", "conversation", 0.08, 80, 360),
        part("vsr", "qa", 0.05, 256, 100, reverse_ratio=0.0, **short),
    )
