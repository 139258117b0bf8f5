"""Score files of predictions without a model: captions, answers to questions, directories of images.

Each function reads the forms in which people have references and predictions on disk, strictly, and returns what
`seed-jax eval score` prints as JSON.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from seed_jax import images as image_files
from seed_jax.errors import UserError
from seed_jax.evaluation import data_files
from seed_jax.evaluation.metrics import inception
from seed_jax.evaluation.metrics.bleu import bleu
from seed_jax.evaluation.metrics.cider import cider
from seed_jax.evaluation.metrics.frechet import (
    FeatureAccumulator,
    FeatureStatistics,
    frechet_distance,
    load_statistics,
    save_statistics,
)
from seed_jax.evaluation.metrics.ngrams import count_ngrams
from seed_jax.evaluation.metrics.ptb import count_line_separators, tokenize
from seed_jax.evaluation.metrics.rouge import rouge_l
from seed_jax.evaluation.metrics.vqa_accuracy import short_answer, vqa_accuracy
from seed_jax.evaluation.task import DataOptions
from seed_jax.evaluation.tasks.video_questions import NextOe

# The files that pytorch-fid takes from a directory, whose subdirectories it leaves out.
_IMAGE_SUFFIXES = (".bmp", ".jpg", ".jpeg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_RESIZER = "pytorch-fid: bilinear to 299 without antialiasing"
_SCALE = "pytorch-fid (2015 Inception); torchvision's Inception, which the original's scripts use, gives another scale"


def score_captions(
    references: str | Path, predictions: str | Path, *, per_image: bool = False, allow_missing: bool = False
) -> dict[str, Any]:
    """Score captions as pycocoevalcap does.

    Args:
        references: a JSON file {image id: [captions]}, or COCO annotations {"images": [{"id"}], "annotations":
            [{"image_id", "caption"}]}.
        predictions: a JSON file {image id: caption}, or a list [{"image_id", "caption"}]; also as JSON lines.
        per_image: also return `order`, the image ids, and `per_image`, the scores in this order by metric.
        allow_missing: score the predicted images only. CIDEr then compares with equal subsets only.

    Returns:
        `Bleu_1` to `Bleu_4`, `ROUGE_L`, `CIDEr` as fractions (papers print 100 times these) and the number of `images`.

    Raises:
        UserError: a file is broken, or the two are not about the same images; file and record are named.
    """
    references, predictions = Path(references), Path(predictions)
    captions = _read_references(references)
    candidates = _read_predicted_captions(predictions)
    order = _common_ids(captions, candidates, "image", references, predictions, allow_missing)
    ordered_candidates = [candidates[image] for image in order]
    ordered_references = [captions[image] for image in order]
    scores = caption_scores(ordered_candidates, ordered_references)
    result: dict[str, Any] = {name: value for name, (value, _) in scores.items()}
    result["images"] = len(order)
    separators = count_line_separators([*ordered_candidates, *itertools.chain(*ordered_references)])
    if separators:
        # pycocoevalcap would give every later caption the tokens of its predecessor.
        result["captions_with_line_separators"] = separators
    if per_image:
        result["order"] = order
        result["per_image"] = {name: values.tolist() for name, (_, values) in scores.items()}
    return result


def caption_scores(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, tuple[float, Float[np.ndarray, " images"]]]:
    """Tokenize captions and return each metric, for the whole set and for each image.

    Args:
        candidates: one caption for each image.
        references: the captions of each image.
    """
    candidate_tokens = tokenize(candidates)
    flat = iter(tokenize(list(itertools.chain(*references))))
    reference_tokens = [list(itertools.islice(flat, len(group))) for group in references]
    counted = count_ngrams(candidate_tokens, reference_tokens)
    whole, per_image = bleu(counted)
    scores = {f"Bleu_{n}": (float(whole[n - 1]), per_image[n - 1]) for n in range(1, 5)}
    return scores | {"ROUGE_L": rouge_l(candidate_tokens, reference_tokens), "CIDEr": cider(counted)}


def score_vqa(
    predictions: str | Path,
    annotations: str | Path | None = None,
    *,
    per_question: bool = False,
    clean: bool = False,
    allow_missing: bool = False,
) -> dict[str, Any]:
    """Score answers by the official VQA accuracy.

    Args:
        predictions: a JSON list [{"question_id", "answer"}] as evaluation servers take it (`prediction` is understood
            as well, and VizWiz's `image` in the place of the id), JSON lines of such records, or {question id: answer}.
        annotations: the official file {"annotations": [{"question_id", "answers": [{"answer"}]}]}, TextVQA's {"data":
            [{"question_id", "answers": [texts]}]}, or a list of such records; left out if the predictions hold
            `answers` themselves.
        per_question: also return `order`, the question ids, and `per_question`, the accuracies in this order.
        clean: strip a final period and lower-case the predictions first, which the official script does not.
        allow_missing: score the predicted questions only.

    Returns:
        `accuracy` from 0 to 100, the number of `questions`, and `per_question_type` and `per_answer_type` where the
        annotations have types.

    Raises:
        UserError: a file is broken, a question has no answers, or the two are not about the same questions; file and
            record are named.
    """
    predictions = Path(predictions)
    annotations = predictions if annotations is None else Path(annotations)
    questions = _read_annotations(annotations)
    predicted = _read_predicted_answers(predictions)
    order = _common_ids(questions, predicted, "question", annotations, predictions, allow_missing)
    answers = [short_answer(predicted[question]) if clean else predicted[question] for question in order]
    accuracies = [
        100 * vqa_accuracy(answer, questions[question]["answers"])
        for question, answer in zip(order, answers, strict=True)
    ]
    result: dict[str, Any] = {"accuracy": round(sum(accuracies) / len(order), 6), "questions": len(order)}
    for key in ("question_type", "answer_type"):
        groups: dict[str, list[float]] = {}
        for question, accuracy in zip(order, accuracies, strict=True):
            if key in questions[question]:
                groups.setdefault(questions[question][key], []).append(accuracy)
        if groups:
            result[f"per_{key}"] = {
                name: round(sum(values) / len(values), 6) for name, values in sorted(groups.items())
            }
    if clean:
        result["predictions_cleaned"] = "final period removed, lower-cased"
    if per_question:
        result["order"] = order
        result["per_question"] = [round(accuracy, 6) for accuracy in accuracies]
    return result


def score_wups(
    predictions: str | Path, annotations: str | Path, wordnet: str | Path, *, per_question: bool = False
) -> dict[str, Any]:
    """Score answers to NExT-OE's questions by WUPS.

    Args:
        predictions: a JSON file {video: {question id: answer}}, as NExT-OE's script takes it.
        annotations: val.csv or test.csv; second answers are read from `add_reference_answer_test.json` beside test.csv.
        wordnet: directory of WordNet's database files.
        per_question: also return `order`, the ids VIDEO_QUESTION, and `per_question`, the scores in this order.

    Returns:
        `WUPS` and `WUPS_0.9` from 0 to 100, their mean by `per_question_type`, and the number of `questions`.

    Raises:
        UserError: a file is broken, or the two are not about the same questions; file and record are named.
    """
    predictions, annotations = Path(predictions), Path(annotations)
    options = DataOptions(annotations.parent, annotations, split=annotations.stem, wordnet=Path(wordnet))
    task = NextOe().configured(options)
    samples = task.read(options)
    content = data_files.read_json(predictions)
    if not isinstance(content, dict) or not all(isinstance(answers, dict) for answers in content.values()):
        raise UserError(f"{predictions}: expected {{video: {{question id: answer}}}}.")
    predicted = {f"{video}_{number}": text for video, answers in content.items() for number, text in answers.items()}
    wrong = next((name for name, text in predicted.items() if not isinstance(text, str)), None)
    if wrong is not None:
        raise UserError(f"{predictions}, question {wrong}: expected an answer as text.")
    order = _common_ids(
        {sample.id: sample for sample in samples}, predicted, "question", annotations, predictions, False
    )
    scores = task.score(samples, [{"prediction": predicted[question]} for question in order])
    result: dict[str, Any] = {
        **scores.metrics,
        "questions": len(order),
        "per_question_type": scores.groups,
        "lemmas": scores.notes[0],
    }
    if per_question:
        result |= {"order": order, "per_question": scores.per_sample["WUPS"]}
    return result


def score_fid(
    images: str | Path,
    reference: str | Path,
    inception_tensors: Mapping[str, np.ndarray],
    inception_name: str,
    *,
    batch_size: int = 50,
    max_bad: int = 0,
    save_to: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Return the Frechet inception distance of the images of two directories, or of a directory and statistics.

    Args:
        images: a directory of images.
        reference: a directory of images, or an .npz file of statistics with the keys `mu` and `sigma`.
        inception_tensors: the tensors of `pt_inception-2015-12-05-*.pth` by name.
        inception_name: what to call their file in messages.
        batch_size: images that the network takes at once.
        max_bad: how many unreadable images may be left out of each directory.
        save_to: an .npz file to write the statistics of `images` to, which later distances take as the reference.
        progress: called with the images done and their number, directory by directory.

    Returns:
        `fid`, the number of `images` and of `reference_images` (None for statistics), how images were resized, and the
        messages of images that were left out as `bad`.

    Raises:
        UserError: a directory, an image, the statistics or the network's file is unusable.
    """
    images, reference = Path(images), Path(reference)
    if reference.suffix == ".npz":
        reference_statistics: FeatureStatistics | None = load_statistics(reference, inception.FEATURES)
    else:
        reference_statistics = None
        _list_images(reference)
    _list_images(images)
    params = inception.import_inception(inception_tensors, inception_name)
    statistics, bad = inception_statistics(images, params, batch_size=batch_size, max_bad=max_bad, progress=progress)
    if save_to is not None:
        save_statistics(Path(save_to), statistics)
    result: dict[str, Any] = {"images": len(_list_images(images)) - len(bad), "reference_images": None}
    if reference_statistics is None:
        reference_statistics, bad_references = inception_statistics(
            reference, params, batch_size=batch_size, max_bad=max_bad, progress=progress
        )
        result["reference_images"] = len(_list_images(reference)) - len(bad_references)
        bad = bad + bad_references
    return {
        "fid": frechet_distance(statistics, reference_statistics),
        **result,
        "scale": _SCALE,
        "resizer": _RESIZER,
        "weights": inception_name,
        **({"bad": bad} if bad else {}),
    }


def inception_statistics(
    directory: Path,
    params: inception.Params,
    *,
    batch_size: int = 50,
    max_bad: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[FeatureStatistics, list[str]]:
    """Return the statistics of the Inception features of a directory's images, and the messages of unreadable ones."""
    paths = _list_images(directory)
    accumulator = FeatureAccumulator()
    bad: list[str] = []
    batch: list[np.ndarray] = []
    for index, path in enumerate(paths, 1):
        try:
            batch.append(np.asarray(image_files.load(path)))
        except UserError as error:
            bad.append(str(error))
            if len(bad) > max_bad:
                raise
        if len(batch) == batch_size or (index == len(paths) and batch):
            accumulator.update(inception.inception_features(params, batch, batch_size))
            batch = []
            if progress is not None:
                progress(index, len(paths))
    try:
        return accumulator.statistics(), bad
    except UserError as error:
        raise UserError(f"{directory}: {error}") from error


def _list_images(directory: Path) -> list[Path]:
    if not directory.is_dir():
        raise UserError(
            f"{directory} is not a directory: give a directory of images, or an .npz file as the reference."
        )
    paths = sorted(path for path in directory.iterdir() if path.suffix.lower() in _IMAGE_SUFFIXES)
    if len(paths) < 2:
        raise UserError(
            f"{directory} holds {len(paths)} images ({', '.join(_IMAGE_SUFFIXES)}), and a covariance needs at least"
            " two: give a directory with more images."
        )
    return paths


def _read_references(path: Path) -> dict[str, list[str]]:
    """Read captions by image id, from either form."""
    content = data_files.read_json(path)
    captions: dict[str, list[str]] = {}
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        for where, record in data_files.records(content.get("images", []), f"{path}, images"):
            captions[str(data_files.identifier(record, "id", where))] = []
        listed = bool(captions)
        for where, record in data_files.records(content["annotations"], f"{path}, annotations"):
            image = str(data_files.identifier(record, "image_id", where))
            if listed and image not in captions:
                raise UserError(f"{where} is about image {image}, which `images` does not list: repair the file.")
            captions.setdefault(image, []).append(data_files.text(record, "caption", where))
    elif isinstance(content, dict):
        for image, group in content.items():
            if not isinstance(group, list):
                raise UserError(f"{path}, image {image}: expected a list of captions, found {data_files.kind(group)}.")
            for caption in group:
                if not isinstance(caption, str):
                    raise UserError(
                        f"{path}, image {image}: expected captions as text, found {data_files.kind(caption)}."
                    )
            captions[image] = group
    else:
        raise UserError(
            f"{path} holds {data_files.kind(content)}: expected {{image id: [captions]}} or COCO annotations with"
            " `annotations`."
        )
    for image, group in captions.items():
        if not group:
            raise UserError(f"{path}, image {image} has no captions: add some, or remove the image.")
    return captions


def _read_predicted_captions(path: Path) -> dict[str, str]:
    content = data_files.read_json(path)
    if isinstance(content, dict):
        for image, caption in content.items():
            if not isinstance(caption, str):
                raise UserError(
                    f"{path}, image {image}: expected one caption as text, found {data_files.kind(caption)}."
                )
        return content
    captions: dict[str, str] = {}
    for where, record in data_files.records(content, str(path)):
        image = str(data_files.identifier(record, "image_id", where))
        if image in captions:
            raise UserError(f"{where} is a second caption of image {image}: give one caption for each image.")
        captions[image] = data_files.text(record, "caption", where)
    return captions


def _read_annotations(path: Path) -> dict[str, dict[str, Any]]:
    """Read answers, and types where they are given, by question id."""
    content = data_files.read_json(path)
    if isinstance(content, dict):
        records = content.get("annotations", content.get("data"))
        if not isinstance(records, list):
            raise UserError(
                f"{path} has no list `annotations` or `data`: expected official annotations, or a list of records with"
                " `question_id` and `answers`."
            )
    else:
        records = content
    questions: dict[str, dict[str, Any]] = {}
    for where, record in data_files.records(records, str(path)):
        question = str(data_files.identifier(record, _question_key(record), where))
        if question in questions:
            raise UserError(f"{where} repeats question {question}: give each question once.")
        answers = record.get("answers")
        if not isinstance(answers, list) or len(answers) < 2:
            raise UserError(
                f"{where}, question {question} has no answers to compare with (`answers` is"
                f" {'missing' if answers is None else data_files.kind(answers)}): expected a list of ten; test splits"
                " without answers are scored by their evaluation server."
            )
        texts = [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers]
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(
                    f"{where}, question {question}, answers[{number}]: expected text, found {data_files.kind(text)}."
                )
        types = {key: record[key] for key in ("question_type", "answer_type") if isinstance(record.get(key), str)}
        questions[question] = {"answers": texts, **types}
    return questions


def _read_predicted_answers(path: Path) -> dict[str, str]:
    content = data_files.read_json(path)
    if isinstance(content, dict):
        for question, answer in content.items():
            if not isinstance(answer, str):
                raise UserError(
                    f"{path}, question {question}: expected an answer as text, found {data_files.kind(answer)}."
                )
        return content
    predicted: dict[str, str] = {}
    for where, record in data_files.records(content, str(path)):
        question = str(data_files.identifier(record, _question_key(record), where))
        if question in predicted:
            raise UserError(f"{where} is a second answer to question {question}: give one answer for each question.")
        predicted[question] = data_files.text(record, "prediction" if "prediction" in record else "answer", where)
    return predicted


def _question_key(record: dict[str, Any]) -> str:
    """Return the key of a question's id: VizWiz names questions by their image."""
    return "image" if "question_id" not in record and "image" in record else "question_id"


def _common_ids(
    references: Mapping[str, Any],
    predictions: Mapping[str, Any],
    noun: str,
    references_path: Path,
    predictions_path: Path,
    allow_missing: bool,
) -> list[str]:
    """Return the ids to score in the order of the references; the ids of both files must be equal."""
    unknown = [key for key in predictions if key not in references]
    if unknown:
        raise UserError(
            f"{predictions_path}, {noun} {unknown[0]}{_and_others(unknown)} is not in {references_path}: the"
            " predictions belong to another split or run."
        )
    missing = [key for key in references if key not in predictions]
    if missing and not allow_missing:
        raise UserError(
            f"{predictions_path} has no prediction for {noun} {missing[0]}{_and_others(missing)} of {references_path}:"
            " predict the whole split, or allow missing predictions."
        )
    if not predictions:
        raise UserError(f"{predictions_path} holds no predictions: there is nothing to score.")
    return [key for key in references if key in predictions]


def _and_others(ids: list[str]) -> str:
    return f" (and {len(ids) - 1} others)" if len(ids) > 1 else ""
