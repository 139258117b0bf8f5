"""`seed-jax eval score`: score files of predictions, or directories of images, without a model."""

import argparse
import json
from pathlib import Path
from typing import Any


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the command and its kinds."""
    parser = subparsers.add_parser(
        "score",
        help="score files of predictions without a model",
        description="Score files of predictions, or directories of images, without a model; prints one JSON object.",
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    _add_caption(kinds)
    _add_vqa(kinds)
    _add_wups(kinds)
    _add_fid(kinds)
    _add_cmmd(kinds)


def _add_caption(kinds: argparse._SubParsersAction) -> None:
    parser = kinds.add_parser(
        "caption",
        help="CIDEr, BLEU and ROUGE-L",
        description="Score captions as pycocoevalcap does, without Java. METEOR and SPICE are not offered: both are "
        "defined by their Java programs and data.",
    )
    parser.add_argument(
        "--references", required=True, type=Path, metavar="FILE", help="{image id: [captions]} or COCO annotations"
    )
    parser.add_argument(
        "--predictions", required=True, type=Path, metavar="FILE", help="{image id: caption} or COCO results"
    )
    parser.add_argument("--per-image", action="store_true", help="add the scores of each image")
    _add_allow_missing(parser, "images")
    parser.set_defaults(run=_score_captions)


def _add_vqa(kinds: argparse._SubParsersAction) -> None:
    parser = kinds.add_parser("vqa", help="VQA accuracy", description="Score answers by the official VQA accuracy.")
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE", help="official annotations; left out if --predictions has answers"
    )
    parser.add_argument(
        "--predictions",
        required=True,
        type=Path,
        metavar="FILE",
        help='a list of {"question_id", "answer"}, or of {"question_id", "prediction", "answers": [10 texts]}',
    )
    parser.add_argument("--per-question", action="store_true", help="add the accuracy of each question")
    parser.add_argument("--clean", action="store_true", help="strip a final period and lower-case the answers first")
    _add_allow_missing(parser, "questions")
    parser.set_defaults(run=_score_vqa)


def _add_wups(kinds: argparse._SubParsersAction) -> None:
    parser = kinds.add_parser(
        "wups",
        help="WUPS of open-ended NExT-QA",
        description="Score open answers by WUPS: Wu-Palmer similarity of their words. Similarities equal NLTK's; words "
        "are reduced to lemmas by WordNet's morphology alone.",
    )
    parser.add_argument("--annotations", required=True, type=Path, metavar="FILE", help="NExT-OE's val.csv or test.csv")
    parser.add_argument(
        "--predictions", required=True, type=Path, metavar="FILE", help="{video: {question id: answer}}"
    )
    parser.add_argument(
        "--wordnet", required=True, type=Path, metavar="DIR", help="WordNet's database files (index.noun, ...)"
    )
    parser.add_argument("--per-question", action="store_true", help="add the score of each question")
    parser.set_defaults(run=_score_wups)


def _add_fid(kinds: argparse._SubParsersAction) -> None:
    parser = kinds.add_parser(
        "fid",
        help="Frechet inception distance",
        description="Compute the Frechet inception distance of a directory of images on pytorch-fid's scale.",
    )
    parser.add_argument("--images", required=True, type=Path, metavar="DIR", help="images to judge")
    parser.add_argument(
        "--reference", required=True, type=Path, metavar="DIR|FILE", help="true images, or .npz statistics (mu, sigma)"
    )
    parser.add_argument(
        "--inception", required=True, type=Path, metavar="FILE", help="pt_inception-2015-12-05-*.pth or safetensors"
    )
    parser.add_argument("--batch-size", type=int, default=50, metavar="N", help="images at a time (default: 50)")
    parser.add_argument(
        "--max-bad", type=int, default=0, metavar="N", help="unreadable images that are left out (default: 0)"
    )
    parser.add_argument(
        "--save-statistics",
        type=Path,
        metavar="FILE",
        help="write the statistics of --images, for later as --reference",
    )
    parser.set_defaults(run=_score_fid)


def _add_cmmd(kinds: argparse._SubParsersAction) -> None:
    parser = kinds.add_parser(
        "cmmd",
        help="CLIP maximum mean discrepancy",
        description="Compute CMMD, the maximum mean discrepancy of CLIP embeddings, of two directories of images. The "
        "published scale is that of CLIP ViT-L/14 at 336 pixels.",
    )
    parser.add_argument("--images", required=True, type=Path, metavar="DIR", help="images to judge")
    parser.add_argument("--reference", required=True, type=Path, metavar="DIR", help="true images")
    parser.add_argument("--clip", required=True, type=Path, metavar="DIR", help="folder of a Hugging Face CLIP model")
    parser.set_defaults(run=_score_cmmd)


def _add_allow_missing(parser: argparse.ArgumentParser, noun: str) -> None:
    parser.add_argument("--allow-missing", action="store_true", help=f"score the predicted {noun} only")


# The functions below import late: `--help` waits for neither JAX nor NumPy.
def _score_captions(args: argparse.Namespace) -> None:
    from seed_jax.evaluation.score import score_captions

    _print(
        score_captions(args.references, args.predictions, per_image=args.per_image, allow_missing=args.allow_missing)
    )


def _score_vqa(args: argparse.Namespace) -> None:
    from seed_jax.evaluation.score import score_vqa

    _print(
        score_vqa(
            args.predictions,
            args.annotations,
            per_question=args.per_question,
            clean=args.clean,
            allow_missing=args.allow_missing,
        )
    )


def _score_wups(args: argparse.Namespace) -> None:
    from seed_jax.evaluation.score import score_wups

    _print(score_wups(args.predictions, args.annotations, args.wordnet, per_question=args.per_question))


def _score_fid(args: argparse.Namespace) -> None:
    from seed_jax.convert.tensors import open_tensors
    from seed_jax.errors import UserError
    from seed_jax.evaluation.score import score_fid

    if args.save_statistics is not None and args.save_statistics.suffix != ".npz":
        raise UserError(f"--save-statistics is {args.save_statistics}, expected a name that ends in .npz.")
    if args.batch_size < 1:
        raise UserError(f"--batch-size is {args.batch_size}, expected at least 1.")
    tensors = open_tensors(args.inception)
    arrays = {name: tensors[name].read() for name in tensors}
    _print(
        score_fid(
            args.images,
            args.reference,
            arrays,
            str(args.inception),
            batch_size=args.batch_size,
            max_bad=args.max_bad,
            save_to=args.save_statistics,
        )
    )


def _score_cmmd(args: argparse.Namespace) -> None:
    from seed_jax.evaluation.clip import ClipModel, embed_directory
    from seed_jax.evaluation.metrics.cmmd import cmmd

    clip = ClipModel(args.clip)
    images, references = embed_directory(clip, args.images), embed_directory(clip, args.reference)
    _print({"cmmd": cmmd(images, references), "images": len(images), "reference_images": len(references)})


def _print(result: dict[str, Any]) -> None:
    print(json.dumps(result, ensure_ascii=False))
