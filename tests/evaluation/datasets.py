"""Small datasets in the official formats, and a random SEED-LLaMA to evaluate on them."""

import base64
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from seed_jax.checkpoint import model_dir
from seed_jax.convert.llama.key_table import abstract_params as abstract_llama_params
from seed_jax.data.text import bert
from seed_jax.models.diffusion import UnclipConfig
from seed_jax.models.llama.model import LlamaConfig
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig, abstract_params
from seed_jax.sharding import unbox
from seed_jax.train.stages.codebook.model import CodebookModel, CodebookSizes
from tests.models.diffusion.cases import random_decoder
from tests.models.tokenizer.cases import random_like
from tests.support import golden, philox

TOKENIZER = SeedTokenizerConfig.tiny()
SIZES = dataclasses.replace(LlamaConfig.tiny(830), hidden_size=32, intermediate_size=48, max_length=512)


def write_model(root: Path) -> Path:
    """Write a random language model `llama` that names its image tokenizer and decoder; return its directory."""
    model_dir.save(
        root / "tokenizer", "seed_tokenizer", {"sizes": TOKENIZER.to_dict()}, random_like(abstract_params(TOKENIZER))
    )
    unclip, weights = random_decoder(UnclipConfig.tiny(TOKENIZER.embedding_width))
    model_dir.save(root / "decoder", "unclip", {"sizes": unclip.config.to_dict()}, weights)
    files = {file.name: file for file in golden.path("text_tokenizer/tokenizer").iterdir()}
    config = {
        "sizes": SIZES.to_dict(),
        "image_tokenizer": "../tokenizer",
        "decoder": "../decoder",
        "prompt_style": "vicuna",
    }
    params = philox.params_like(abstract_llama_params(SIZES), seed=0, scale=0.3)
    model_dir.save(root / "llama", "llama", config, params, files=files)
    return root / "llama"


def write_text_tokenizer(directory: Path) -> Path:
    """Write a random image tokenizer with stage I's text side, as training of stage II leaves it."""
    vocabulary = bert.train_small(["a dog number 0 on a mat", "a cat in a hat", "1 2 3 4 5"], 64)
    qformer = dataclasses.replace(TOKENIZER.qformer, vocab_size=vocabulary.size)
    sizes = CodebookSizes(dataclasses.replace(TOKENIZER, qformer=qformer), 16)
    variables = random_like(unbox(CodebookModel(sizes).abstract()))
    files = {bert.FILE: vocabulary.save}
    return model_dir.save(directory, "seed_tokenizer", sizes.to_dict(), variables, files=files)


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_image(path: Path, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.Generator(np.random.Philox(number)).integers(0, 255, (24, 32, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def karpathy(root: Path, count: int = 5, name: str = "dataset_coco.json") -> Path:
    """Karpathy's file with images in val2014/, and one of another split."""
    images = []
    for number in range(count):
        file = f"COCO_val2014_{number + 1:012d}.jpg"
        write_image(root / "val2014" / file, number)
        sentences = [{"raw": f"A dog number {number} on a mat."}, {"raw": "A cat in a hat"}]
        images.append(
            {"filepath": "val2014", "filename": file, "split": "test", "cocoid": number + 1, "sentences": sentences}
        )
    images.append({**images[0], "filename": "missing.jpg", "split": "train", "cocoid": 99})
    return write_json(root / name, {"images": images, "dataset": "coco"})


def nocaps(root: Path) -> Path:
    """COCO's form of annotations, with domains."""
    images = [
        {"id": 7, "file_name": "a.jpg", "domain": "in-domain"},
        {"id": 8, "file_name": "b.jpg", "domain": "out-domain"},
    ]
    for image in images:
        write_image(root / "images" / image["file_name"], image["id"])
    captions = [{"id": i, "image_id": 7 + i % 2, "caption": f"a red ball {i}"} for i in range(4)]
    return write_json(root / "nocaps_val_4500_captions.json", {"images": images, "annotations": captions})


def vqa(root: Path, count: int = 4, prefix: str = "v2_", split: str = "val2014") -> Path:
    """Questions and annotations of VQAv2, or of OK-VQA without the prefix."""
    questions, annotations = [], []
    for number in range(count):
        write_image(root / split / f"COCO_{split}_{number + 1:012d}.jpg", number)
        ids = {"image_id": number + 1, "question_id": 10 * (number + 1)}
        questions.append({**ids, "question": f"What is number {number}?"})
        answers = [{"answer": "dog" if i % 2 else "cat", "answer_id": i + 1} for i in range(10)]
        annotations.append(
            {**ids, "question_type": ("what", "is")[number % 2], "answer_type": "other", "answers": answers}
        )
    write_json(root / f"{prefix}OpenEnded_mscoco_{split}_questions.json", {"questions": questions})
    if not split.startswith("test"):
        write_json(root / f"{prefix}mscoco_{split}_annotations.json", {"annotations": annotations})
    return root


def vizwiz(root: Path) -> Path:
    answers = [{"answer": "unanswerable", "answer_confidence": "yes"}] * 10
    write_image(root / "val" / "VizWiz_val_00000000.jpg")
    record = {"image": "VizWiz_val_00000000.jpg", "question": "What is this?", "answers": answers}
    return write_json(root / "Annotations" / "val.json", [{**record, "answer_type": "unanswerable", "answerable": 0}])


def textvqa(root: Path) -> Path:
    write_image(root / "train_images" / "ab12.jpg")
    record = {"question_id": 34602, "question": "what brand?", "image_id": "ab12", "answers": ["nokia"] * 10}
    return write_json(root / "TextVQA_0.5.1_val.json", {"data": [record], "dataset_type": "val"})


def gqa(root: Path) -> Path:
    write_image(root / "images" / "n161.jpg")
    record = {"imageId": "n161", "question": "Is it red?", "answer": "no", "types": {"structural": "verify"}}
    return write_json(root / "testdev_balanced_questions.json", {"201": record})


def seed_bench(root: Path) -> Path:
    """Three image questions of two types; a video question whose frames are extracted."""
    choices = {"choice_a": "One", "choice_b": "Two or three", "choice_c": "A dog", "choice_d": "None of them"}
    common = {**choices, "data_type": "image", "question": "How many dogs?"}
    questions = [
        {
            **common,
            "question_id": str(number),
            "data_id": f"{number}",
            "answer": "ABC"[number],
            "question_type_id": 1 + number % 2,
        }
        for number in range(3)
    ]
    for number in range(3):
        _write_png(root / "SEED-Bench-image" / str(number), number)
    types = {"Scene Understanding": 1, "Instance Identity": 2, "Action Recognition": 10}
    return write_json(root / "SEED-Bench.json", {"questions": questions, "question_type": types})


def _write_png(path: Path, number: int) -> None:
    """Write an image under a name without an extension, as SEED-Bench's are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_png(number))


def mmbench(root: Path) -> Path:
    """One question in two rotations, and one with two choices."""
    head = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "split"]
    image = base64.b64encode(_png(1)).decode()
    rows = [
        ["7", "Which?", "nan", "x", "y", "z", "w", "A", "ocr", image, "dev"],
        ["1000007", "Which?", "nan", "w", "x", "y", "z", "B", "ocr", image, "dev"],
        ["8", "Is it?", "Look.", "yes", "no", "nan", "nan", "B", "logic", image, "dev"],
    ]
    path = root / "mmbench_dev_en.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join("\t".join(row) for row in [head, *rows]) + "\n", encoding="utf-8")
    return path


def _png(number: int) -> bytes:
    pixels = np.random.Generator(np.random.Philox(number)).integers(0, 255, (24, 32, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def video_questions(root: Path, video: str = "vid1300") -> Path:
    """MSVD-QA's list with the extracted frames of a video."""
    for number in range(9):
        write_image(root / "frames" / video / f"{number:03d}.jpg", number)
    return write_json(root / "test_qa.json", [{"answer": "man", "id": 0, "question": "who sings?", "video_id": 1300}])


def nextqa(root: Path) -> Path:
    """NExT-QA's table with one question about a folder of frames."""
    video_questions(root, "4010069381")
    path = root / "val.csv"
    head = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4"
    path.write_text(f"{head}\n4010069381,369,640,480,what does he do,2,6,TN,run,jump,sing,eat,sleep\n")
    return path


def nextoe(root: Path, split: str = "val") -> Path:
    """NExT-OE's table with three questions about a folder of frames."""
    video_questions(root, "4010069381")
    path = root / f"{split}.csv"
    rows = ["what is it,cat,1,DO", "how many dogs are there,two,2,DC", "why did he stop,tired of running,3,CW"]
    lines = [f"4010069381,369,640,480,{row}" for row in rows]
    path.write_text("\n".join(["video,frame_count,width,height,question,answer,qid,type", *lines]) + "\n")
    write_json(root / "add_reference_answer_test.json", {"4010069381": {"1": "dog"}})
    return path


def wordnet(root: Path) -> Path:
    """A database in WordNet's format: entity > animal > (canine > dog | cat), and the verbs to run and to move.

    Depths are 0, 1, 2, 3 and 2, so that the similarity of dog and cat is 2 * 2 / (2 + 1 + 2 * 2) = 4 / 7.
    """
    root.mkdir(parents=True, exist_ok=True)
    licence = "  1 This is the licence.\n"
    nouns = ["entity", "animal", "canine", "dog", "cat"]
    parents = {"animal": "entity", "canine": "animal", "dog": "canine", "cat": "animal"}

    def files(name: str, pos: str, words: list[str], parents: dict[str, str], exceptions: str = "") -> None:
        offset = {word: 100 + number for number, word in enumerate(words)}
        index = [f"{word} {pos} 1 1 @ 1 0 {offset[word]:08d}" for word in sorted(words)]
        data = []
        for word in words:
            pointers = f"001 @ {offset[parents[word]]:08d} {pos} 0000" if word in parents else "000"
            data.append(f"{offset[word]:08d} 03 {pos} 01 {word} 0 {pointers} | a {word}")
        for suffix, lines in (("index", index), ("data", data)):
            (root / f"{suffix}.{name}").write_text(licence + "".join(f"{line}  \n" for line in lines))
        (root / f"{name}.exc").write_text(exceptions)

    files("noun", "n", nouns, parents, "kine cow\n")
    files("verb", "v", ["move", "run", "sleep"], {"run": "move"}, "ran run\n")
    files("adj", "a", ["big"], {})
    files("adv", "r", ["slowly"], {})
    return root


def write_clip(directory: Path) -> tuple[transformers.CLIPModel, transformers.CLIPTokenizer]:
    """Write a small random CLIP model with the vocabulary of the recorded decoder; return it as transformers has it."""
    source = golden.path("unclip_tiny/diffusion_model/tokenizer")
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"):
        (directory / name).write_bytes((source / name).read_bytes())
    tokenizer = transformers.CLIPTokenizer.from_pretrained(directory)
    text = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    vision = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24)
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name and "logit_scale" not in name:
                weight.copy_(torch.from_numpy(0.2 * philox.normal(5, name, tuple(weight.shape))))
    model.save_pretrained(directory)
    return model, tokenizer


def vist(root: Path) -> Path:
    """One story of five images."""
    annotations = []
    for number in range(5):
        write_image(root / "images" / f"{900 + number}.png", number)
        part = {"story_id": "30", "photo_flickr_id": str(900 + number), "worker_arranged_photo_order": number}
        annotations.append([{**part, "text": f"part {number} .", "original_text": f"Part {number}."}])
    return write_json(root / "val.story-in-sequence.json", {"images": [], "annotations": annotations[::-1]})
