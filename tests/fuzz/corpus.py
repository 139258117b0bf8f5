"""Seeds: small well-formed files of every format that is read, made by the tests themselves."""

import base64
import gzip
import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from seed_jax.data.text.vocabulary import image_tokens, train_small
from tests.data.sources.samples import png, tar
from tests.support import golden


def write_json(path: Path, content: Any) -> Path:
    """Write a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_lines(path: Path, entries: list[Any]) -> Path:
    """Write JSON lines."""
    path.write_text("\n".join(map(json.dumps, entries)))
    return path


def images(folder: Path) -> list[Path]:
    """Write one image of each format, and further modes and bit depths."""
    rgb = Image.effect_noise((40, 30), 60).convert("RGB")
    rgb.putpixel((3, 4), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    grey16 = Image.fromarray((np.arange(600, dtype=np.uint16) * 100).reshape(20, 30))
    files = []
    for name, image, options in [
        ("a.png", rgb, {}), ("a.jpg", rgb, {"exif": exif}), ("a.gif", rgb, {}), ("a.webp", rgb, {}),
        ("a.bmp", rgb, {}), ("a.tif", rgb, {}), ("a.jp2", rgb, {}), ("a.ppm", rgb, {}),
        ("palette.png", rgb.convert("P"), {"transparency": 0}), ("alpha.png", rgb.convert("RGBA"), {}),
        ("grey16.png", grey16, {}), ("float.tif", rgb.convert("F"), {}), ("cmyk.jpg", rgb.convert("CMYK"), {}),
        ("packed.tif", rgb, {"compression": "tiff_lzw"}), ("lossless.webp", rgb, {"lossless": True}),
    ]:  # fmt: skip
        image.save(folder / name, **options)
        files.append(folder / name)
    if "AVIF" in Image.SAVE:
        rgb.save(folder / "a.avif")
        files.append(folder / "a.avif")
    return files


def video(folder: Path) -> list[Path]:
    """Write a short film."""
    from tests.data.sources.videos_test import film

    return [film(folder / "v.mp4", range(0, 200, 20))]


def caption_entry(name: str = "a.png") -> dict[str, Any]:
    """Return an entry of a caption list."""
    return {"image": name, "caption": "a dog", "similarity": 0.3}


def caption_list(folder: Path) -> list[Path]:
    return [write_json(folder / "c.json", [caption_entry()] * 3)]


def caption_lines(folder: Path) -> list[Path]:
    return [write_lines(folder / "c.jsonl", [caption_entry()] * 3)]


def table(folder: Path) -> list[Path]:
    (folder / "c.csv").write_text('image,caption\na.png,"a ""red"" dog"\na.png,x\n')
    return [folder / "c.csv"]


def captions_folder(folder: Path) -> list[Path]:
    return [write_lines(folder / "captions.jsonl", [caption_entry()] * 3)]


def text(folder: Path) -> list[Path]:
    (folder / "t.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a river"}\n' * 5))
    return [folder / "t.jsonl.gz"]


def coco(folder: Path) -> list[Path]:
    content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": "a dog"}]}
    return [write_json(folder / "captions_x.json", content)]


def vqa(folder: Path) -> list[Path]:
    questions = [{"image_id": 1, "question": "q", "question_id": 7}]
    annotations = [{"question_id": 7, "answers": [{"answer": "a"}]}]
    return [
        write_json(folder / "x_questions.json", {"data_subtype": "train", "questions": questions}),
        write_json(folder / "x_annotations.json", {"annotations": annotations}),
    ]


def ocr_vqa(folder: Path) -> list[Path]:
    book = {"imageURL": "http://x/a.png", "questions": ["q", "r"], "answers": ["a", "b"], "split": 1}
    return [write_json(folder / "ocr.json", {"a": book, "b": book})]


def llava(folder: Path) -> list[Path]:
    turns = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]
    entries = [{"image": "a.png", "conversations": turns}, {"image": ["a.png"], "data": ["q", "a"]}]
    return [write_json(folder / "l.json", entries)]


def edits(folder: Path) -> list[Path]:
    entry = {"source": "a.png", "target": "a.png", "instruction": "hat"}
    return [write_lines(folder / "e.jsonl", [entry] * 3)]


def edit_seeds(folder: Path) -> list[Path]:
    write_json(folder / "0" / "prompt.json", {"edit": "hat"})
    return [write_json(folder / "seeds.json", [["0", ["1", "2"]]])]


def vist(folder: Path) -> list[Path]:
    scenes = [
        [{"story_id": "s", "worker_arranged_photo_order": n, "photo_flickr_id": "a", "original_text": "x"}]
        for n in range(5)
    ]
    return [write_json(folder / "x.story-in-sequence.json", {"images": [], "annotations": scenes})]


def mimicit(folder: Path) -> list[Path]:
    """Write instructions and, as the second file, the images that they name."""
    images = {"p": base64.b64encode(png(1)).decode(), "q": base64.b64encode(png(2)).decode()}
    question = {"instruction": "q", "answer": "a", "image_ids": ["p", "q"]}
    path = write_json(folder / "CGD_instructions.json", {"data": {"1": question, "2": question}})
    return [path, write_json(folder / "CGD.json", images)]


def mmc4(folder: Path) -> list[Path]:
    """Write documents and, as the second file, their images."""
    info = {"image_name": "a.png", "matched_text_index": 0, "matched_sim": 0.3}
    with zipfile.ZipFile(folder / "d.jsonl.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("d.jsonl", "\n".join([json.dumps({"text_list": ["x", "y"], "image_info": [info]})] * 3))
    return [folder / "d.jsonl.zip", tar(folder / "d.tar", {"a.png": png(1)})]


def obelics(folder: Path) -> list[Path]:
    rows = [{"images": [{"bytes": png(1)}, None], "texts": [None, "x"], "general_metadata": "{}"}] * 4
    pq.write_table(pa.Table.from_pylist(rows), folder / "o.parquet", row_group_size=2)
    return [folder / "o.parquet"]


def parquet(folder: Path) -> list[Path]:
    rows = [{"image": png(1), "text": "x", "n": 1, "tags": ["a", "b"], "size": {"w": 1}}] * 6
    pq.write_table(pa.Table.from_pylist(rows), folder / "p.parquet", row_group_size=4)
    return [folder / "p.parquet"]


def pickle_tar(folder: Path) -> list[Path]:
    from tests.data.sources.pickles_test import SAMPLES, shards

    return [shards(folder / "0.tar", list(SAMPLES.values())[:4])]


def webdataset(folder: Path) -> list[Path]:
    members = {"0.png": png(1), "0.txt": b"x", "0.json": b'{"url": "u"}', "1.png": png(2), "1.txt": b"y"}
    return [tar(folder / "w.tar", members)]


def compressed_webdataset(folder: Path) -> list[Path]:
    return [tar(folder / "w.tar.gz", {"0.png": png(1), "0.txt": b"x", "1.v.png": png(2), "1.v.txt": b"y"}, "w:gz")]


def video_list(folder: Path) -> list[Path]:
    (folder / "v.mp4").write_bytes(b"no video")
    return [write_lines(folder / "v.jsonl", [{"video": "v.mp4", "caption": "x"}, {"video": "v", "q": "q", "a": "a"}])]


def world(folder: Path) -> list[Path]:
    return [write_json(folder / "w.json", {"task": "captions", "count": 2, "seed": 0, "side": 16})]


def pickles(folder: Path) -> list[Path]:
    from tests.data.sources.pickles_test import SAMPLES

    paths = []
    for number, sample in enumerate(list(SAMPLES.values())[:6]):
        paths.append(folder / f"{number}.pkl")
        paths[-1].write_bytes(pickle.dumps(sample, number % 6))
    return paths


def record(folder: Path) -> list[Path]:
    from seed_jax.data.shards import records

    items = (np.arange(32, dtype=np.uint16), "a dog", png(1))
    (folder / "record").write_bytes(records.encode(records.Record("a/1", "folder", items, {"width": 640, "x": [1.5]})))
    return [folder / "record"]


def shard_directory(folder: Path) -> list[Path]:
    """Write shards; the seeds are a shard and the manifest."""
    from tests.data.batches import mixtures

    directory = mixtures.write(folder / "d", map(mixtures.captioned, range(5)), shard_size=3)
    return [directory / "shard-000000.array_record", directory / "manifest.json"]


def safetensors(folder: Path) -> list[Path]:
    from safetensors.numpy import save_file

    save_file({"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float16)}, folder / "m.safetensors")
    return [folder / "m.safetensors"]


def torch_file(folder: Path) -> list[Path]:
    import torch

    state = {"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
    torch.save({"model": state}, folder / "m.pt")
    torch.save(state, folder / "old.pt", _use_new_zipfile_serialization=False)
    return [folder / "m.pt", folder / "old.pt"]


def weight_index(folder: Path) -> list[Path]:
    content = {"metadata": {"total_size": 12}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    return [write_json(folder / "model.safetensors.index.json", content)]


def llama_config(folder: Path) -> list[Path]:
    content = {
        "architectures": ["LlamaForCausalLM"], "vocab_size": 830, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 256, "rope_theta": 1e4, "bos_token_id": 1, "hidden_act": "silu", "head_dim": 16,
        "rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }  # fmt: skip
    return [write_json(folder / "config.json", content)]


def opt_config(folder: Path) -> list[Path]:
    content = {
        "model_type": "opt", "architectures": ["OPTForCausalLM"], "vocab_size": 830, "hidden_size": 64, "ffn_dim": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256, "word_embed_proj_dim": 64,
        "do_layer_norm_before": True, "activation_function": "relu", "enable_bias": True,
    }  # fmt: skip
    return [write_json(folder / "config.json", content)]


def clip_config(folder: Path) -> list[Path]:
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**tower, "image_size": 28, "patch_size": 14, "hidden_act": "gelu", "layer_norm_eps": 1e-5}
    content = {"projection_dim": 24, "vision_config": vision, "text_config": {**tower, "vocab_size": 523}}
    return [write_json(folder / "config.json", content)]


def adapter_config(folder: Path) -> list[Path]:
    content = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "lora_dropout": 0.05, "bias": "none",
        "target_modules": ["q_proj", "v_proj"], "use_rslora": False, "init_lora_weights": True, "rank_pattern": {},
        "modules_to_save": ["lm_head"], "use_dora": False,
    }  # fmt: skip
    return [write_json(folder / "adapter_config.json", content)]


def diffusers_configs(folder: Path) -> list[Path]:
    """Copy the configs of a decoder; all of them are seeds."""
    source = golden.path("sd14_tiny/diffusion_model")
    paths = []
    for name in ("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        paths.append(Path(shutil.copyfile(source / name, folder / name)))
    return paths


def model_configs(folder: Path) -> list[Path]:
    """Write the `config.json` of a model directory of every kind."""
    from seed_jax.models.diffusion import StableDiffusionConfig, UnclipConfig
    from seed_jax.models.llama.config import LlamaConfig
    from seed_jax.models.opt.config import OptConfig
    from seed_jax.models.tokenizer.config import SeedTokenizerConfig
    from seed_jax.models.tokenizer.image_text import ImageTextConfig
    from seed_jax.models.tokenizer.text_branch import TextBranchConfig

    llama = {"sizes": LlamaConfig.tiny(830).to_dict(), "lora": {"rank": 4, "alpha": 8.0, "dropout": 0.05}}
    branch = {"joint_width": 8, "text_branch": TextBranchConfig().to_dict()}
    contents = {
        "llama": {**llama, "image_tokenizer": "../t", "decoder": None, "prompt_style": "vicuna"},
        "opt": {"sizes": OptConfig.tiny(830).to_dict(), "image_tokenizer": None},
        "seed_tokenizer": {"sizes": SeedTokenizerConfig.tiny("reverse_qformer").to_dict(), **branch},
        "seed_qformer": {"sizes": ImageTextConfig().to_dict()},
        "unclip": {"sizes": UnclipConfig.tiny().to_dict()},
        "stable_diffusion": {"sizes": StableDiffusionConfig().to_dict()},
        "seed_llama": {"language_model": "../llama", "image_tokenizer": "../t", "prompt_style": "base"},
    }
    return [
        write_json(folder / kind / "config.json", {"kind": kind, "format": 1, **content, "provenance": {}})
        for kind, content in contents.items()
    ]


def sentencepiece_files(folder: Path) -> list[Path]:
    """Write the text tokenizer of a SEED-LLaMA; the seeds are its model and the added tokens."""
    train_small(["a dog in the fog on a log", "a cat on a mat in a hat"], folder, 300, 64)
    return [folder / "tokenizer.model", folder / "added_tokens.json"]


def opt_tokenizer(folder: Path) -> list[Path]:
    """Copy the text tokenizer of an OPT; the seeds are vocabulary, merges and added tokens."""
    for path in golden.path("opt_tiny/tokenizer").iterdir():
        shutil.copyfile(path, folder / path.name)
    count = len(json.loads((folder / "vocab.json").read_text()))
    write_json(folder / "added_tokens.json", image_tokens(count, 64))
    return [folder / "vocab.json", folder / "merges.txt", folder / "added_tokens.json"]


def clip_tokenizer(folder: Path) -> list[Path]:
    """Copy the text tokenizer of a decoder."""
    names = ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json")
    for name in names:
        shutil.copyfile(golden.path("sd14_tiny/diffusion_model/tokenizer") / name, folder / name)
    return [folder / name for name in names]


def bert_vocabulary(folder: Path) -> list[Path]:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "##s", "."]
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces))
    return [folder / "vocab.txt"]


def phrases(folder: Path) -> list[Path]:
    from seed_jax.data.templates.phrases import DEFAULT

    return [Path(shutil.copyfile(DEFAULT, folder / "phrases.json"))]


def build_state(folder: Path) -> list[Path]:
    """Write the plan of a build and the report of a finished shard."""
    from seed_jax.data.build import plan, reports
    from seed_jax.data.shards.manifest import ShardFile

    (folder / "build").mkdir()
    plan.save(folder / "build", plan.BuildPlan("folder", {"a.jsonl": (10, 3)}, 2, 0, None, None))
    (folder / "shard-000000.array_record").write_bytes(b"1234")
    reports.save(folder, 0, reports.ShardReport(ShardFile("shard-000000.array_record", 2, 4, "0"), {"texts": 2}, ()))
    return [folder / "build" / "plan.json", folder / "build" / "shard-000000.json"]


def prompts(folder: Path) -> list[Path]:
    entries = [
        {"prompt": "a cup of <image>", "images": ["a.png"], "id": 3, "temperature": 1.0, "top_p": 0.5, "stop": ["x"]},
        {"prompt": "draw", "mode": "image", "num_images": 1, "seed": 4, "top_k": 7, "negative_prompt": "dog"},
    ]
    (folder / "a.png").write_bytes(png(1))
    return [write_lines(folder / "p.jsonl", entries)]


def codes(folder: Path) -> list[Path]:
    return [write_lines(folder / "c.jsonl", [{"path": f"{n}.png", "codes": list(range(32))} for n in range(3)])]


def captions_to_score(folder: Path) -> list[Path]:
    """Write references and predictions."""
    references = {str(n): ["a dog on a mat", f"the dog {n}"] for n in range(3)}
    return [
        write_json(folder / "references.json", references),
        write_json(folder / "predictions.json", {str(n): f"a dog {n}" for n in range(3)}),
    ]


def answers_to_score(folder: Path) -> list[Path]:
    """Write annotations and predictions."""
    answers = [{"answer": "cat" if n % 2 else "dog"} for n in range(10)]
    annotations = [{"question_id": n, "question_type": "what", "answers": answers} for n in range(3)]
    return [
        write_json(folder / "annotations.json", {"annotations": annotations}),
        write_json(folder / "predictions.json", [{"question_id": n, "answer": "a Dog."} for n in range(3)]),
    ]


def statistics(folder: Path) -> list[Path]:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, mu=np.zeros(4), sigma=np.eye(4))
    (folder / "s.npz").write_bytes(buffer.getvalue())
    return [folder / "s.npz"]


def hub_manifest(folder: Path) -> list[Path]:
    from seed_jax.hub.manifest import FILE

    return [Path(shutil.copyfile(FILE, folder / "manifest.toml"))]


def fetch_record(folder: Path) -> list[Path]:
    from seed_jax.hub.download import RECORD

    return [write_json(folder / RECORD, {"files": {"a.bin": {"sha256": "0" * 64, "size": 3, "source": "x"}}})]


def lfs_pointer(folder: Path) -> list[Path]:
    (folder / "m.bin").write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12\n")
    return [folder / "m.bin"]


def token_ids(folder: Path) -> list[Path]:
    """Write generated ids: text, an image of 32 codes, and image tokens that form none."""
    ids = [1, 300, *range(302, 334), 301, 2, 300, 302, 7]
    (folder / "ids").write_bytes(np.array(ids, "<i4").tobytes())
    return [folder / "ids"]


def stop_strings(folder: Path) -> list[Path]:
    return [write_json(folder / "stop.json", {"stop": ["zebra", "\n\n", "é"], "text": "a zebra crossing é"})]
