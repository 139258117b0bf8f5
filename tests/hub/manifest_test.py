import re

import pytest

from seed_jax.errors import UserError
from seed_jax.hub.manifest import load_manifest

VALID = """
[[artefact]]
name = "weights"
title = "t"
purpose = "p"
licence = "mit"
licence_confidence = "confirmed"
gated = "no"
used_by = "tests"
[[artefact.source]]
hub = "owner/name"
revision = "main"
confidence = "confirmed"
[[artefact.file]]
path = "a/b.bin"
size = 12
sha256 = "unknown"
confidence = "confirmed"
"""


def parse(tmp_path, text):
    path = tmp_path / "manifest.toml"
    path.write_text(text)
    load_manifest.cache_clear()
    return load_manifest(path)


def test_packaged_manifest_names_what_the_package_reads():
    manifest = load_manifest()
    named = {
        *("seed-quantizer", "eva-vit-g", "seed-text-tokenizer", "seed-1", "seed-llama-lora"),
        *(f"seed-llama-{size}-{stage}" for size in ("8b", "14b") for stage in ("pretrain", "sft")),
        *("vicuna-7b-v1.1", "llama-2-13b-chat", "opt-2.7b", "blip2-stage1", "bert-base-uncased"),
        *("clip-vit-l-14", "clip-vit-h-14", "clip-vit-b-32", "sd-2-1-unclip", "sd-2-1-unclip-fp16"),
        *("sd-1-4", "sd-1-4-checkpoint", "fid-inception"),
    }
    assert set(manifest.artefacts) == named
    assert {"seed-llama-8b", "seed-llama-14b"} <= set(manifest.bundles)


def test_packaged_manifest_avoids_the_traps():
    artefacts = load_manifest().artefacts
    for name in ("sd-2-1-unclip", "sd-2-1-unclip-fp16"):
        assert artefacts[name].sources[0].where == "sd2-community/stable-diffusion-2-1-unclip"
        assert all("small" not in source.where for source in artefacts[name].sources)
        assert "768" in artefacts[name].wrong[0].what
    assert sum(file.size for file in artefacts["seed-llama-8b-sft"].files) == pytest.approx(27.2e9, rel=0.01)
    for size in ("8b", "14b"):
        assert artefacts[f"seed-llama-{size}-sft"].needs == ("seed-text-tokenizer",)
    quantizer = artefacts["seed-quantizer"].files[0]
    assert (quantizer.size, quantizer.exact) == (1228836570, True)
    assert quantizer.sha256 == "322a9fba55cb0e97e1a633981fbbdff20577af69146a0f23fa7b14201459a13f"
    assert artefacts["llama-2-13b-chat"].gated == "yes"


def test_a_bundle_brings_what_its_parts_need():
    names = [artefact.name for artefact in load_manifest().resolve(["seed-llama-8b", "eva-vit-g"])]
    assert names == [
        *("seed-llama-8b-sft", "seed-text-tokenizer", "seed-quantizer", "eva-vit-g", "sd-2-1-unclip-fp16"),
    ]


def test_import_commands_name_directories(tmp_path):
    manifest = load_manifest()
    arguments = manifest.artefacts["seed-quantizer"].import_arguments(tmp_path / "w", tmp_path / "m")
    assert arguments == [
        *("import", "tokenizer", "--quantizer", str(tmp_path / "w/seed-quantizer/seed_quantizer.pt")),
        *("--vit", str(tmp_path / "w/eva-vit-g/eva_vit_g.pth"), "--out", str(tmp_path / "m")),
    ]
    for artefact in manifest.artefacts.values():
        for argument in artefact.import_arguments(tmp_path, tmp_path / "m") or ():
            assert "{" not in argument
            if argument.endswith((".pt", ".pth", ".ckpt")):
                files = [file.path for other in manifest.artefacts.values() for file in other.files]
                assert argument.rsplit("/", 1)[1] in files


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("seed-lama-8b", "seed-llama-8b"), ("SEED_QUANTIZER", "seed-quantizer"), ("vicuna-7b", "vicuna-7b-v1.1")],
)
def test_the_nearest_name_is_suggested(name, suggestion):
    with pytest.raises(UserError, match=rf"did you mean .*{re.escape(suggestion)}"):
        load_manifest().resolve([name])


def test_what_was_never_published_is_refused():
    with pytest.raises(UserError, match="seed-llama-lora cannot be fetched"):
        load_manifest().resolve(["seed-llama-lora"])


def test_a_valid_manifest_is_read(tmp_path):
    file = parse(tmp_path, VALID).artefacts["weights"].files[0]
    assert (file.size, file.exact, file.sha256) == (12, True, None)
    prefix = parse(tmp_path, VALID.replace('"unknown"', '"0123456789..."')).artefacts["weights"].files[0].sha256
    assert prefix == "0123456789"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('title = "t"\n', "", "weights.*'title' is missing"),
        ('title = "t"', "title = 3", "title = 3 has the wrong type"),
        ('title = "t"', 'title = "t"\ncolour = "red"', "colour.*unknown"),
        ("size = 12", "size = 0", "size = 0"),
        ("size = 12", "size = true", "size = True"),
        ("size = 12", 'size = "12 apples"', "12 apples"),
        ('"unknown"', '"01234"', "sha256 = '01234'"),
        ('"a/b.bin"', '"../b.bin"', "relative path"),
        ('"a/b.bin"', '"/etc/passwd"', "relative path"),
        ('name = "weights"', 'name = "../weights"', "relative path"),
        ('gated = "no"', 'gated = "maybe"', "maybe.*none of"),
        ('hub = "owner/name"', 'hub = "name"', "repository id"),
        ('hub = "owner/name"\nrevision = "main"', 'url = "file:///etc"', "address"),
        ('hub = "owner/name"', 'hub = "owner/name"\nurl = "https://a.b"', "exactly one"),
        ('used_by = "tests"', 'import = ["import", "llama", "{other}"]', "{other}"),
        ('used_by = "tests"', 'used_by = "tests"\nneeds = ["other"]', "'other', which is no artefact"),
        ('used_by = "tests"\n', "", "import command or used_by"),
        ("[[artefact]]", "[[artefact]", "Cannot read the manifest"),
    ],
)
def test_faults_of_a_manifest_are_named(tmp_path, old, new, words):
    assert old in VALID
    with pytest.raises(UserError, match=words):
        parse(tmp_path, VALID.replace(old, new, 1))


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "none.toml"))):
        load_manifest(tmp_path / "none.toml")
