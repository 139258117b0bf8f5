"""Cards state what is known about a model, and nothing else."""

import json
import re
import shlex

import pytest

from seed_jax.checkpoint import model_dir
from seed_jax.cli import main
from seed_jax.convert.llama.hf_export import export_llama
from seed_jax.convert.model_card.card import BIBTEX, MARK, README
from seed_jax.convert.model_card.facts import origins, read_facts
from seed_jax.data.shards import manifest
from seed_jax.doctor import cases
from seed_jax.hub.download import RECORD
from seed_jax.inference.language_model import update_bundle_card, write_bundle
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig
from tests.support.pages import ROOT


@pytest.fixture
def trained(tmp_path):
    """A language model that training made from an imported one, with a data manifest and an evaluation."""
    files = {path.name: path for path in cases.VOCABULARY.iterdir()}
    base, shards, workdir = tmp_path / "base", tmp_path / "shards", tmp_path / "sft"
    config = {"sizes": cases.LLAMA.to_dict(), "image_tokenizer": None}
    provenance = {"from": "downloads/vicuna-7b-v1.1", "artefacts": ["vicuna-7b-v1.1"]}
    model_dir.save(base, "llama", config, None, provenance=provenance)
    shards.mkdir()
    manifest.save(shards, manifest.Manifest("webdataset", (), {"codes": 40, "texts": 41}, tokenizer="abc123"))
    model_dir.save(workdir, "llama", config, cases.llama_params(), files=files, provenance={"stage": "sft"})
    component = {"path": str(shards), "task": "qa|b", "weight": 0.5}
    run = {"stage": "sft", "steps": 7, "model": {"init": str(base)}, "data": {"mixture": [component]}}
    (workdir / "run.json").write_text(json.dumps(run))
    (workdir / "eval").mkdir()
    (workdir / "eval/results.json").write_text(json.dumps({"tasks": {"vqa": {"score": 0.25, "bad": [1]}}}))
    return workdir


def metadata(text):
    return dict(line.split(": ", 1) for line in text.split("---")[1].splitlines() if ": " in line)


def test_an_export_names_base_data_training_and_results(trained, tmp_path):
    export_llama(trained, tmp_path / "out", dtype="bfloat16")
    text = (tmp_path / "out" / README).read_text()
    assert metadata(text) == {"library_name": "transformers", "pipeline_tag": "text-generation", "license": "other"}
    assert "- lmsys/vicuna-7b-v1.1" in text
    assert "| Vicuna 7B v1.1 | lmsys/vicuna-7b-v1.1 | none stated; LLaMA-1 terms (non-commercial) | unknown |" in text
    assert "| `shards` | qa\\|b | 0.5 | webdataset | 0 | 40 | 41 | abc123 |" in text
    assert '"steps": 7' in text
    assert "| sft/eval/results.json | tasks.vqa.score | 0.25 |" in text
    assert "AutoModelForCausalLM.from_pretrained" in text
    assert "seed-jax import llama --from out" in text
    assert (tmp_path / "out/load_in_pytorch.py").is_file()


def test_a_bundle_has_a_card_and_keeps_the_users_own(trained, tmp_path):
    write_bundle(tmp_path / "bundle", language_model=trained)
    path = tmp_path / "bundle" / README
    assert "seed-jax chat --model bundle" in path.read_text()
    (tmp_path / "bundle/results.json").write_text('{"caption_known_attributes": 0.97}')
    update_bundle_card(tmp_path / "bundle")
    assert "| results.json | caption_known_attributes | 0.97 |" in path.read_text()
    path.write_text("# Mine\n")
    update_bundle_card(tmp_path / "bundle")
    assert path.read_text() == "# Mine\n"


def test_a_card_names_the_command_that_imports_the_export(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = {"sizes": cases.TOKENIZER.to_dict()}
    model_dir.save(tmp_path / "model", "seed_tokenizer", sizes, cases.tokenizer_params())
    assert main(["export", "tokenizer", "--model", "model", "--out", "out", "--format", "safetensors"]) == 0
    command = re.search(r"^seed-jax (import .*)$", (tmp_path / "out" / README).read_text(), re.M)[1]
    assert main(shlex.split(command)) == 0
    _, config = model_dir.read_config("DIR")
    assert config["sizes"] == sizes["sizes"]


def test_a_bundle_names_what_cannot_be_exported(trained, tmp_path):
    sizes = {"sizes": SeedTokenizerConfig.small().to_dict()}  # with CLIP's ViT, as the quickstart trains it
    model_dir.save(tmp_path / "tokenizer", "seed_tokenizer", sizes, None)
    write_bundle(tmp_path / "bundle", language_model=trained, image_tokenizer=tmp_path / "tokenizer")
    text = (tmp_path / "bundle" / README).read_text()
    assert "seed-jax export llama --model sft --out bundle_llama" in text
    assert "`tokenizer` cannot be exported" in text
    assert "seed-jax export tokenizer" not in text


def test_what_is_not_known_is_not_stated(tmp_path):
    files = {path.name: path for path in cases.VOCABULARY.iterdir()}
    config = {"sizes": cases.LLAMA.to_dict(), "image_tokenizer": None}
    model_dir.save(tmp_path / "m", "llama", config, cases.llama_params(), files=files)
    export_llama(tmp_path / "m", tmp_path / "out")
    text = (tmp_path / "out" / README).read_text()
    assert MARK in text
    assert "license" not in metadata(text)
    assert "No base model is recorded" in text
    assert "No results were found" in text
    assert "## Training" not in text


def test_downloads_are_recognised(tmp_path):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / RECORD).write_text(json.dumps({"artefact": "seed-quantizer", "files": {}}))
    (tmp_path / "w/a.pt").touch()
    assert origins(tmp_path / "w/a.pt", tmp_path / "w", None, tmp_path) == ["seed-quantizer"]
    (tmp_path / "w" / RECORD).write_text("damaged")
    assert origins(tmp_path / "w") == []


def test_a_directory_that_is_gone_is_named_only(trained):
    run = json.loads((trained / "run.json").read_text())
    run["data"]["mixture"][0]["path"] = "gone/shards"
    (trained / "run.json").write_text(json.dumps(run))
    assert read_facts(trained).data == {"gone/shards": {"task": "qa|b", "weight": 0.5}}


def test_both_papers_are_cited_alike():
    """CITATION.cff, the cards and the README name the same papers and authors."""
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"arxiv.org/abs/([\d.]+)", citation) == re.findall(r"arXiv:([\d.]+)", BIBTEX)
    assert BIBTEX in (ROOT / "README.md").read_text(encoding="utf-8")
    for title in re.findall(r"title=\{(.*)\}", BIBTEX):
        assert f'title: "{title}"' in citation
    papers = [block.split("year:")[0] for block in citation.split("- type: article")[1:]]
    for authors, block in zip(re.findall(r"author=\{(.*)\}", BIBTEX), papers, strict=True):
        names = re.findall(r"family-names: (\w+), given-names: (\w+)", block)
        assert " and ".join(", ".join(name) for name in names) == authors
