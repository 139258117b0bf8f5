"""The original's instruction tuning mixture: eighteen components (spec D.4, `multi_torchdata_sft.yaml`).

`weight`, `batch_size` and `max_length` are the original's values; the weights sum to 3.81. As in pre-training, a
component's share of the samples is weight * batch_size / sum, since the original draws whole batches. Its cycles are
unknown; here no component ends.

Questions with short answers get the answer-length suffix; captions are answers to a fixed question. An image that
`max_length` would split is dropped, and so is a sample without any trained token.
"""

from typing import Any

from seed_jax.data.templates import SHORT_ANSWER

CAPTION = "Please describe this image in one short sentence."
VIDEO_CAPTION = "Please describe this video in one short sentence."


def components(root: str = "data/sft", style: str = "vicuna") -> tuple[dict[str, Any], ...]:
    """Return the components.

    Args:
        root: parent of the shard directories.
        style: role markers: "vicuna" for the 8B models, "llama2" for the 14B models.
    """

    def component(
        names: str, task: str, weight: float, batch_size: int, max_length: int, **more: Any
    ) -> dict[str, Any]:
        paths = [f"{root}/{name}" for name in names.split()]
        question = {key: more.pop(key) for key in ("question", "suffix") if key in more}
        return {
            "path": paths if len(paths) > 1 else paths[0],
            "task": f"sft.{task}",
            "weight": weight,
            "batch_size": batch_size,
            "params": {"max_length": max_length, "style": style, "whole_images": True, "drop_untrained": True, **more},
            **question,
        }

    short = {"suffix": SHORT_ANSWER}
    return (
        component("mimicit_cgd", "difference", 0.15, 160, 200),
        component("vist", "story", 0.08, 80, 360, reverse_ratio=0.0),
        component("magicbrush instruct_pix2pix", "edit", 0.5, 256, 100),
        component("llava_conversation", "conversation", 0.15, 60, 512),
        component("svit", "conversation", 0.2, 32, 1024),
        component("vqav2", "qa", 0.2, 256, 100, reverse_ratio=0.0, **short),
        component("okvqa vizwiz aokvqa", "qa", 0.1, 256, 100, reverse_ratio=0.0, **short),
        component("visdial", "conversation", 0.15, 80, 360),
        component("coco_captions", "qa", 0.2, 256, 100, reverse_ratio=0.5, question=CAPTION),
        component(
            "msrvtt_caption msrvtt_qa msvd_caption msvd_qa", "video_qa", 0.1, 160, 200, question=VIDEO_CAPTION, **short
        ),
        component("nextqa activitynet_qa", "video_qa", 0.15, 80, 360, **short),
        component("video_chatgpt", "video_qa", 0.2, 60, 512),
        component("llava_cc3m lrv", "visual_question", 0.4, 80, 400),
        component("journeydb", "qa", 0.5, 200, 128, reverse_ratio=-1.0),
        component("laion_aesthetic", "qa", 0.5, 256, 100, reverse_ratio=-1.0),
        component("textcaps textvqa ocrvqa", "qa", 0.1, 256, 100, reverse_ratio=0.0, question=CAPTION, **short),
        component("llavar", "conversation", 0.08, 80, 360),
        component("vsr", "qa", 0.05, 256, 100, reverse_ratio=0.0, **short),
    )
