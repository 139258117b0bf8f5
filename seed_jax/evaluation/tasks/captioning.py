"""Captioning: COCO (Karpathy's test split), nocaps and Flickr30K, scored as pycocoevalcap does."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from seed_jax.errors import UserError
from seed_jax.evaluation import data_files
from seed_jax.evaluation.answering import UNTUNED_STYLES, GeneratedText
from seed_jax.evaluation.score import caption_scores
from seed_jax.evaluation.task import DataOptions, PaperNumber, Prediction, Sample, Scores, by_group
from seed_jax.inference.generation.sampling_params import SamplingParams

INSTRUCTION = "Please provide an accurate and concise description of the given image."
# Official names of files with captions, for tasks that take those of any dataset.
FILES = ("dataset_coco.json", "dataset_flickr30k.json", "coco_karpathy_test*.json", "captions_val*.json")


class Captioning(GeneratedText):
    """Captions by beam search; base models continue the image without an instruction.

    Args:
        name: of the task.
        summary: one line.
        files: official names of the annotations.
        split: which images of Karpathy's file are used by default.
    """

    metric = "CIDEr"
    right_from = None
    sampling_params = SamplingParams(64, mode="text", beams=5, length_penalty_on="sequence")

    def __init__(
        self,
        name: str,
        summary: str,
        files: tuple[str, ...],
        split: str = "test",
        paper: tuple[PaperNumber, ...] = (),
        instruction_tuned_on: bool = False,
    ):
        self.name, self.summary, self.files, self.split, self.paper = name, summary, files, split, paper
        self.instruction_tuned_on = instruction_tuned_on

    def read(self, options: DataOptions) -> list[Sample]:
        return read_captions(options, self.files, self.split)

    def prompt(self, sample: Sample, style: str) -> str:
        return "" if style in UNTUNED_STYLES else INSTRUCTION

    def clean(self, text: str) -> str:
        return " ".join(text.split())

    def score(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> Scores:
        scores = caption_scores(
            [prediction["prediction"] for prediction in predictions], [sample.truth["captions"] for sample in samples]
        )
        per_sample = {name: [100 * float(v) for v in values] for name, (_, values) in scores.items()}
        return Scores(
            metrics={name: 100 * whole for name, (whole, _) in scores.items()},
            # BLEU of the whole set is not the mean of the images' BLEU.
            per_sample={name: per_sample[name] for name in ("CIDEr", "ROUGE_L")},
            groups=by_group(samples, per_sample["CIDEr"]),
            notes=("CIDEr's document frequencies come from the scored images: compare equal subsets only.",),
        )

    def submission(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> Any:
        return [
            {"image_id": sample.truth["image_id"], "caption": prediction["prediction"]}
            for sample, prediction in zip(samples, predictions, strict=True)
        ]

    def describe(self, sample: Sample, prediction: Prediction) -> dict[str, str]:
        return {"prediction": prediction["prediction"], "references": " | ".join(sample.truth["captions"])}


def read_captions(options: DataOptions, files: Sequence[str] = FILES, split: str = "test") -> list[Sample]:
    """Read images with captions from Karpathy's file, COCO annotations, or a list [{"image", "caption"}].

    Args:
        options: where the data is.
        files: official names of the annotations.
        split: which images of Karpathy's file are used by default.

    Raises:
        UserError: the file is missing or damaged, or has no image of the split.
    """
    path = data_files.find(options.data, files, options.annotations, "--annotations")
    split = options.split or split
    samples = list(_samples(path, options, split))
    if not samples:
        raise UserError(f"{path} has no image of the split {split!r}: choose one with --split.")
    return samples


def _samples(path: Path, options: DataOptions, split: str) -> Iterator[Sample]:
    content = data_files.read_json(path)
    if isinstance(content, dict) and "annotations" in content:
        yield from _coco(content, path, options.image_root)
    elif isinstance(content, dict) and "images" in content:
        yield from _karpathy(content, path, options.image_root, split)
    elif isinstance(content, list):
        yield from _pairs(content, path, options.image_root)
    else:
        raise UserError(
            f"{path} is neither Karpathy's file (`images`) nor COCO annotations (`annotations`) nor a list of images"
            " with captions: give another file with --annotations."
        )


def _karpathy(content: dict[str, Any], path: Path, root: Path, split: str) -> Iterator[Sample]:
    for where, record in data_files.records(content["images"], f"{path}, images"):
        if record.get("split") != split:
            continue
        name = data_files.text(record, "filename", where)
        captions = [
            data_files.text(sentence, "raw", place)
            for place, sentence in data_files.records(record.get("sentences"), f"{where}, sentences")
        ]
        image_id = record.get("cocoid", _number(name))
        yield _sample(image_id, image_path(root, str(record.get("filepath", "")), name), captions, where)


def _coco(content: dict[str, Any], path: Path, root: Path) -> Iterator[Sample]:
    images = {}
    for where, record in data_files.records(content.get("images"), f"{path}, images"):
        images[data_files.identifier(record, "id", where)] = (where, record)
    captions: dict[int | str, list[str]] = {}
    for where, record in data_files.records(content["annotations"], f"{path}, annotations"):
        image_id = data_files.identifier(record, "image_id", where)
        if image_id not in images:
            raise UserError(f"{where} is about image {image_id}, which `images` does not list: repair the file.")
        captions.setdefault(image_id, []).append(data_files.text(record, "caption", where))
    for image_id, (where, record) in images.items():
        name = data_files.text(record, "file_name", where)
        group = str(record.get("domain", ""))
        yield _sample(image_id, image_path(root, "", name), captions.get(image_id, []), where, group)


def _pairs(content: list[Any], path: Path, root: Path) -> Iterator[Sample]:
    for where, record in data_files.records(content, str(path)):
        name = data_files.text(record, "image", where)
        captions = record.get("caption")
        captions = [captions] if isinstance(captions, str) else captions
        if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            raise UserError(f"{where}: expected `caption` as text or a list of texts.")
        folder, _, file = name.rpartition("/")
        yield _sample(_number(file), image_path(root, folder, file), captions, where)


def _sample(image_id: int | str, image: Path, captions: Sequence[str], where: str, group: str = "") -> Sample:
    if not captions:
        raise UserError(f"{where}: image {image_id} has no captions: add some, or remove the image.")
    truth = {"image_id": image_id, "captions": tuple(captions)}
    return Sample(str(image_id), (image,), captions[0], truth=truth, group=group)


def image_path(root: Path, folder: str, name: str) -> Path:
    """Return the path of an image below `root`: in the folder that the record names, in COCO's, or directly."""
    folders = [folder] if folder else ["val2014", "val2017", "train2014", "test2014", "test2015", "images", ""]
    for part in ("val2014", "train2014", "test2015", "test2014"):
        if part in name and not folder:
            folders.insert(0, part)
    places = [f"{one}/{name}" if one else name for one in folders]
    return data_files.existing(root, [*places, name, f"images/{name}", f"flickr30k-images/{name}"])


def _number(name: str) -> int | str:
    """Return the image id that a file name of COCO or Flickr30K holds, else the name without its suffix."""
    stem = Path(name).stem
    digits = re.fullmatch(r"(?:COCO_\w+_)?(\d+)", stem)
    return int(digits[1]) if digits else stem


TASKS = [
    Captioning(
        "coco_caption",
        "COCO captions, Karpathy's test split (5,000 images)",
        ("dataset_coco.json", "coco_karpathy_test*.json", "captions_val*.json"),
        paper=(
            PaperNumber("SEED-LLaMA-I 8B", "CIDEr", 124.5),
            PaperNumber("SEED-LLaMA-I 14B", "CIDEr", 126.9, "from memory"),
            PaperNumber("SEED-OPT 2.7B", "CIDEr", 119.0),
        ),
        instruction_tuned_on=True,
    ),
    Captioning("nocaps", "nocaps validation captions, by domain", ("nocaps_val*.json",)),
    Captioning(
        "flickr_caption", "Flickr30K captions, Karpathy's test split", ("dataset_flickr30k.json", "flickr30k_test.json")
    ),
]
