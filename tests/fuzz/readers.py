"""The readers that are fuzzed: what makes their seeds, how these are mutated, and how a mutated file is read."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from seed_jax import images, video
from seed_jax.data.build.encoding import PreparedSample
from seed_jax.data.build.filters import ORIGINAL_FILTERS, FilteredSample, ImageFilters
from seed_jax.data.build.preprocess import prepare
from seed_jax.data.sources import RawSample, SkippedSample, Source, open_source
from tests.data.sources.samples import Reds, png
from tests.fuzz import corpus, mutators
from tests.fuzz.mutators import Mutator


@dataclasses.dataclass(frozen=True)
class Reader:
    """A reader of one format.

    Attributes:
        name: for messages and the random numbers.
        seeds: writes well-formed files into a folder and returns those that are to be mutated.
        read: reads such a file; it may raise UserError and nothing else.
        mutate: damages the content of a file.
        kind: kind of source of `seed-jax data build`, if it is one.
        open: opens the source whose file is given.
    """

    name: str
    seeds: Callable[[Path], list[Path]]
    read: Callable[[Path], object]
    mutate: Mutator = mutators.mutate_json
    kind: str | None = None
    open: Callable[[Path], Source] | None = None


def open_at(kind: str, path: Path, images_from: str | None = None, others: tuple[str, ...] = ()) -> Source:
    """Open a source with a seed at `path`; `others` names all its files where there are several."""
    folder = path.parent
    if not (folder / "a.png").exists():
        (folder / "a.png").write_bytes(png(3))
    options = {"images": folder / images_from} if images_from else {}
    return open_source(kind, [folder / name for name in others] or [path], **options)


def read_source(open_path: Callable[[Path], Source], path: Path) -> None:
    """Read all samples of a source: exactly as many as it counts, each usable or with a reason."""
    source = open_path(path)
    encoder, filters = Reds(), ImageFilters(**ORIGINAL_FILTERS)
    for file in source.files:
        count = min(source.count(file), 100)  # a description of scenes may ask for a billion
        number = 0
        for sample in source.read(file, 0, count):
            number += 1
            assert isinstance(sample, RawSample | SkippedSample)
            assert isinstance(prepare(sample, encoder, filters), PreparedSample | SkippedSample | FilteredSample)
        assert number == count, f"{number} samples of {count}"


def source(
    name: str,
    kind: str,
    seeds: Callable[[Path], list[Path]],
    mutate: Mutator = mutators.mutate_json,
    *,
    images_from: str | None = None,
    others: tuple[str, ...] = (),
) -> Reader:
    """Return the reader of a source of `seed-jax data build`."""
    open_path = functools.partial(open_at, kind, images_from=images_from, others=others)
    return Reader(f"source {name}", seeds, functools.partial(read_source, open_path), mutate, kind, open_path)


def read_image(path: Path) -> None:
    image = images.load(path.read_bytes(), "x")
    images.resize(image, 14)
    images.resize(image, 14, "bicubic", keep_ratio=True)


def read_shards(path: Path) -> None:
    from seed_jax.data.shards.shards import open_shards

    for record in open_shards(path.parent):
        record.items  # noqa: B018


def read_record(path: Path) -> None:
    from seed_jax.data.shards import records

    records.decode(path.read_bytes())


def read_pickle(path: Path) -> None:
    from seed_jax.data.sources.plain_pickle import PickleError, load
    from seed_jax.errors import UserError

    try:
        load(path.read_bytes())
    except PickleError as error:
        raise UserError(str(error)) from error


def read_tensors(path: Path) -> None:
    from seed_jax.convert.tensors import open_tensors

    tensors = open_tensors(path)
    for name in list(tensors)[:8]:
        if np.prod(tensors[name].shape, dtype=float) < 10**6:  # callers compare shapes before they read
            tensors[name].read()


def read_weight_index(path: Path) -> None:
    from seed_jax.convert.tensors import weight_files

    weight_files(path.parent)


def read_llama_config(path: Path) -> None:
    from seed_jax.convert.llama.hf_import import read_config

    read_config(path)


def read_opt_config(path: Path) -> None:
    from seed_jax.convert.opt.hf_import import read_config

    read_config(path)


def read_clip_vision_config(path: Path) -> None:
    from seed_jax.convert.tokenizer.clip import vision_config

    vision_config(path.parent)


def read_clip_text_config(path: Path) -> None:
    from seed_jax.convert.tokenizer.clip import text_config

    text_config(path.parent)


def read_adapter_config(path: Path) -> None:
    from seed_jax.convert.hugging_face.peft import read_spec
    from seed_jax.convert.tensors import TensorDict
    from seed_jax.models.llama.model import Llama

    read_spec(path, TensorDict({}, "x"), Llama.lora_targets)


def read_diffusers_config(path: Path) -> None:
    from seed_jax.convert.diffusion import folder_config

    if path.parent.name == "unet":
        folder_config.read_unet(path, class_labels=False)
    elif path.parent.name == "vae":
        folder_config.read_vae(path)
    elif path.parent.name == "text_encoder":
        folder_config.read_text(path)
    else:
        folder_config.read_scheduler(path)
        folder_config.read_embedding_noise(path)


def read_model_config(path: Path) -> None:
    from seed_jax.checkpoint import model_dir
    from seed_jax.inference.language_model import read_references
    from seed_jax.models.diffusion import DECODERS
    from seed_jax.models.language_models import ARCHITECTURES, read_sizes
    from seed_jax.models.nn import lora
    from seed_jax.models.tokenizer.image_text import ImageTextConfig
    from seed_jax.train.stages.codebook.model import CodebookSizes

    _, config = model_dir.read_config(path.parent)
    kind, sizes = config["kind"], config.get("sizes", {})
    if kind in ARCHITECTURES:
        read_sizes(kind, sizes, str(path))
        if config.get("lora") is not None:
            lora.read_spec(config["lora"], str(path), ["q_proj"])
        read_references(path.parent)
    elif kind == "seed_tokenizer":
        CodebookSizes.from_dict(config, str(path))
    elif kind == "seed_qformer":
        ImageTextConfig.from_dict(sizes, str(path))
    elif kind in DECODERS:
        DECODERS[kind][0].from_dict(sizes, str(path))
    else:
        read_references(path.parent)


def read_vocabulary(path: Path) -> None:
    from seed_jax.data.text.vocabulary import Vocabulary

    vocabulary = Vocabulary.load(path.parent)
    vocabulary.decode(vocabulary.encode("a dog é\n", bos=True))


def read_clip_vocabulary(path: Path) -> None:
    from seed_jax.data.text.clip import ClipVocabulary

    ClipVocabulary.load(path.parent).encode("a dog")


def read_bert_vocabulary(path: Path) -> None:
    from seed_jax.data.text.bert import BertVocabulary

    BertVocabulary.load(path).pad("a dogs.", 8)


def read_phrases(path: Path) -> None:
    from seed_jax.data.templates.phrases import Phrases

    Phrases.load(path)


def read_build_state(path: Path) -> None:
    from seed_jax.data.build import plan, reports

    stored = plan.load(path.parent)
    if stored is not None and stored.num_shards < 100:
        reports.load_all(path.parent.parent, stored)


def read_prompts(path: Path) -> None:
    from seed_jax.cli.generate_batch import read_records
    from seed_jax.inference.generation.sampling_params import SamplingParams

    read_records(path, SamplingParams())


def read_code_lines(path: Path) -> None:
    from seed_jax.cli.detokenize import read_codes

    read_codes(path)


def read_captions_to_score(path: Path) -> None:
    from seed_jax.evaluation.score import score_captions

    score_captions(path.parent / "references.json", path.parent / "predictions.json")


def read_answers_to_score(path: Path) -> None:
    from seed_jax.evaluation.score import score_vqa

    score_vqa(path.parent / "predictions.json", path.parent / "annotations.json")


def read_statistics(path: Path) -> None:
    from seed_jax.evaluation.metrics.frechet import load_statistics

    load_statistics(path)


def read_task(task: str, path: Path, levels: int = 1) -> None:
    """Read the samples of a benchmark; `path` lies `levels` folders below its data directory."""
    from seed_jax.evaluation.task import DataOptions
    from seed_jax.evaluation.tasks import find_task

    root = path.parents[levels - 1]
    for sample in find_task(task).read(DataOptions(root)):
        assert isinstance(sample.id, str)


def benchmark(task: str, maker: str, *names: str, mutate: Mutator = mutators.mutate_json) -> Reader:
    """Return the reader of a benchmark; `names` are its files below the data directory."""

    def seeds(folder: Path) -> list[Path]:
        from tests.evaluation import datasets

        getattr(datasets, maker)(folder)
        return [folder / name for name in names]

    levels = names[0].count("/") + 1
    return Reader(f"benchmark {task}", seeds, functools.partial(read_task, task, levels=levels), mutate)


def read_hub_manifest(path: Path) -> None:
    from seed_jax.hub.manifest import load_manifest

    load_manifest.__wrapped__(path)


def read_fetch_record(path: Path) -> None:
    from seed_jax.hub.download import read_record as read

    read(path.parent)


def read_lfs_pointer(path: Path) -> None:
    from seed_jax.lfs import lfs_pointer

    lfs_pointer(path)


@functools.cache
def _vocabulary():
    import tempfile

    from seed_jax.data.text.vocabulary import Vocabulary

    with tempfile.TemporaryDirectory() as folder:
        corpus.sentencepiece_files(Path(folder))
        return Vocabulary.load(folder)


def parse_ids(path: Path) -> None:
    """Split ids into segments: no id is lost, and an image is 32 codes between its delimiters."""
    from seed_jax.inference.generation.grammar import Grammar
    from seed_jax.inference.generation.sampling_params import ImageConstraint
    from seed_jax.inference.generation.segments import ImageSegment, MalformedSegment, parse_segments

    vocabulary = _vocabulary()
    data = path.read_bytes()
    ids = (np.frombuffer(data[: len(data) // 4 * 4], "<i4").astype(np.int64) % vocabulary.size).tolist()
    grammar = Grammar.from_vocabulary(vocabulary)
    assert 0 <= grammar.min_new_tokens(ImageConstraint(), ids) <= vocabulary.codes_per_image + 1
    segments = parse_segments(ids, vocabulary)
    in_images = sum(
        len(segment.codes) + 2 if isinstance(segment, ImageSegment) else len(segment.ids)
        for segment in segments
        if isinstance(segment, ImageSegment | MalformedSegment)
    )
    is_image = [token in (vocabulary.boi, vocabulary.eoi) or vocabulary.code_of(token) is not None for token in ids]
    assert in_images == sum(is_image)


def split_prompt(path: Path) -> None:
    """Split a prompt at its placeholders, and an answer at its stop strings."""
    from seed_jax.inference.chat.prompts import interleave
    from seed_jax.inference.generation.stop_strings import partial_stop_length, truncate_at_stop

    text = path.read_bytes().decode("utf-8", "replace")
    interleave(text, [[1] * 32] * text.count("<image>"))
    assert "x" not in truncate_at_stop(text, ["x", "é"])
    partial_stop_length(text, ["xyz", "é"])


def compile_stop_strings(path: Path) -> None:
    """Parse stop strings and compare their automaton with a search in the text."""
    from seed_jax.errors import UserError
    from seed_jax.inference.generation.sampling_params import SamplingParams
    from seed_jax.inference.generation.stop_strings import build_automaton

    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError("not JSON") from error
    content = content if isinstance(content, dict) else {}
    params = SamplingParams.from_dict({"stop": content.get("stop", [])}, "x")
    text = str(content.get("text", ""))[:1000]
    strings = params.stop
    if not strings:
        return
    table = build_automaton(strings)
    state, final = 0, len(table)
    for byte in text.encode("utf-8", "replace"):
        state = int(table[state, byte])
        if state == final:
            break
    assert (state == final) == any(string.encode() in text.encode("utf-8", "replace") for string in strings)


def _zip_or_bytes(data, rng, seeds):
    inner = mutators.inside_zip(mutators.mutate_bytes) if data[:2] == b"PK" else mutators.mutate_bytes
    return inner(data, rng, seeds)


READERS = [
    Reader("images", corpus.images, read_image, mutators.mutate_png),
    Reader("videos", corpus.video, lambda path: video.frames(path, 4), mutators.mutate_bytes),
    source("caption list", "captions", corpus.caption_list),
    source("caption lines", "captions", corpus.caption_lines),
    source("table", "captions", corpus.table, mutators.mutate_bytes),
    source("folder", "folder", corpus.captions_folder),
    source("text", "text", corpus.text, mutators.inside_gzip(mutators.mutate_json)),
    source("coco", "coco", corpus.coco),
    source("vqa", "vqa", corpus.vqa, others=("x_questions.json", "x_annotations.json")),
    source("ocr-vqa", "vqa", corpus.ocr_vqa),
    source("llava", "llava", corpus.llava),
    source("edits", "edits", corpus.edits),
    source("edit seeds", "edits", corpus.edit_seeds),
    source("vist", "vist", corpus.vist),
    source("mimicit", "mimicit", corpus.mimicit, images_from="CGD.json", others=("CGD_instructions.json",)),
    source("mmc4", "mmc4", corpus.mmc4, _zip_or_bytes, images_from=".", others=("d.jsonl.zip",)),
    source("obelics", "obelics", corpus.obelics, mutators.mutate_bytes),
    source("parquet", "parquet", corpus.parquet, mutators.mutate_bytes),
    source("pickles", "pickles", corpus.pickle_tar, mutators.mutate_tar),
    source("webdataset", "webdataset", corpus.webdataset, mutators.mutate_tar),
    source("compressed tar", "webdataset", corpus.compressed_webdataset, mutators.inside_gzip(mutators.mutate_tar)),
    source("videos", "videos", corpus.video_list),
    source("world", "world", corpus.world),
    Reader("pickle", corpus.pickles, read_pickle, mutators.mutate_pickle),
    Reader("record", corpus.record, read_record, mutators.mutate_msgpack),
    Reader("shards", corpus.shard_directory, read_shards),
    Reader("build state", corpus.build_state, read_build_state),
    Reader("safetensors", corpus.safetensors, read_tensors, mutators.mutate_safetensors),
    Reader("torch", corpus.torch_file, read_tensors, _zip_or_bytes),
    Reader("weight index", corpus.weight_index, read_weight_index),
    Reader("llama config", corpus.llama_config, read_llama_config),
    Reader("opt config", corpus.opt_config, read_opt_config),
    Reader("clip vision config", corpus.clip_config, read_clip_vision_config),
    Reader("clip text config", corpus.clip_config, read_clip_text_config),
    Reader("adapter config", corpus.adapter_config, read_adapter_config),
    Reader("diffusers configs", corpus.diffusers_configs, read_diffusers_config),
    Reader("model configs", corpus.model_configs, read_model_config),
    Reader("sentencepiece", corpus.sentencepiece_files, read_vocabulary),
    Reader("opt tokenizer", corpus.opt_tokenizer, read_vocabulary),
    Reader("clip tokenizer", corpus.clip_tokenizer, read_clip_vocabulary),
    Reader("bert vocabulary", corpus.bert_vocabulary, read_bert_vocabulary, mutators.mutate_bytes),
    Reader("phrases", corpus.phrases, read_phrases),
    Reader("prompts", corpus.prompts, read_prompts),
    Reader("codes", corpus.codes, read_code_lines),
    Reader("captions to score", corpus.captions_to_score, read_captions_to_score),
    Reader("answers to score", corpus.answers_to_score, read_answers_to_score),
    Reader("statistics", corpus.statistics, read_statistics, mutators.inside_zip(mutators.mutate_bytes)),
    benchmark("coco_caption", "karpathy", "dataset_coco.json"),
    benchmark("nocaps", "nocaps", "nocaps_val_4500_captions.json"),
    benchmark("vqav2", "vqa", "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"),
    benchmark("vizwiz", "vizwiz", "Annotations/val.json"),
    benchmark("textvqa", "textvqa", "TextVQA_0.5.1_val.json"),
    benchmark("gqa", "gqa", "testdev_balanced_questions.json"),
    benchmark("seed_bench", "seed_bench", "SEED-Bench.json"),
    benchmark("mmbench", "mmbench", "mmbench_dev_en.tsv", mutate=mutators.mutate_bytes),
    benchmark("msvd_qa", "video_questions", "test_qa.json"),
    benchmark("nextqa", "nextqa", "val.csv", mutate=mutators.mutate_bytes),
    benchmark("visual_storytelling", "vist", "val.story-in-sequence.json"),
    Reader("hub manifest", corpus.hub_manifest, read_hub_manifest, mutators.mutate_bytes),
    Reader("fetch record", corpus.fetch_record, read_fetch_record),
    Reader("lfs pointer", corpus.lfs_pointer, read_lfs_pointer, mutators.mutate_bytes),
    Reader("generated ids", corpus.token_ids, parse_ids, mutators.mutate_bytes),
    Reader("prompt text", corpus.table, split_prompt, mutators.mutate_bytes),
    Reader("stop strings", corpus.stop_strings, compile_stop_strings),
]
