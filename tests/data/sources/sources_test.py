import gzip
import json
import random
import tarfile

import pytest

from seed_jax.data.sources import RawSample, open_source
from seed_jax.data.sources.samples import text_problem
from seed_jax.errors import UserError
from tests.data.sources.samples import all_samples, reasons, tar

JPEG = b"\xff\xd8 bytes of an image"


def triple(key, text="A dog.", **meta):
    return {f"{key}.jpg": JPEG, f"{key}.txt": text.encode(), f"{key}.json": json.dumps(meta).encode()}


def test_folder_reads_every_way_to_write_a_caption(tmp_path):
    lines = [
        {"image": "a.jpg", "caption": "A dog.", "licence": "CC0"},
        {"path": "sub/b.png", "caption": ["One.", "Two."]},
        {"file_name": "c.jpg", "text": "犬"},
    ]
    text = "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (tmp_path / "captions.jsonl").write_text("\ufeff" + text, encoding="utf-8")
    samples = all_samples(open_source("folder", [tmp_path]))
    assert [sample.id for sample in samples] == ["captions.jsonl:1", "captions.jsonl:3", "captions.jsonl:5"]
    assert samples[0].items == (tmp_path / "a.jpg", "A dog.")
    assert samples[0].meta == {"image": "a.jpg", "licence": "CC0"}
    assert samples[1].items == (tmp_path / "sub/b.png", "One.", "Two.")
    assert samples[2].items == (tmp_path / "c.jpg", "犬")


def test_folder_counts_lines_that_cannot_be_used(tmp_path):
    lines = [
        b'{"image": "a.jpg", "caption": "fine"}',
        b"{not json",
        b"[1, 2]",
        b'{"image": "a.jpg", "caption": "\xff\xfe"}',
        b'{"caption": "which image?"}',
        b'{"image": "a.jpg"}',
        b'{"image": "a.jpg", "caption": 7}',
        b'{"image": "a.jpg", "caption": []}',
        b'{"image": "a\\u0000.jpg", "caption": "x"}',
    ]
    (tmp_path / "c.jsonl").write_bytes(b"\n".join(lines))
    assert reasons(all_samples(open_source("folder", [tmp_path]))) == [
        None,
        "line is not JSON",
        "entry is not a JSON object",
        "text is not UTF-8",
        "no image name",
        "no caption",
        "no caption",
        "no caption",
        "no image name",
    ]


def test_folder_metadata_can_always_be_stored(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"image": "a", "caption": "b", "n": 1' + "0" * 30 + ', "x": ["\\ud800"]}')
    (sample,) = all_samples(open_source("folder", [tmp_path]))
    assert sample.meta == {"image": "a", "n": "1" + "0" * 30, "x": ["?"]}


def test_folder_bad_input(tmp_path):
    with pytest.raises(UserError, match="gone does not exist"):
        open_source("folder", [tmp_path / "gone"])
    with pytest.raises(UserError, match=r"has no captions file: put the captions into captions.jsonl"):
        open_source("folder", [tmp_path])
    (tmp_path / "a.jsonl").write_text("\n \n")
    with pytest.raises(UserError, match=r"a.jsonl has no captions"):
        open_source("folder", [tmp_path])
    (tmp_path / "b.jsonl").touch()
    with pytest.raises(UserError, match=r"has a.jsonl, b.jsonl: put"):
        open_source("folder", [tmp_path])


def test_webdataset_groups_files_by_key(tmp_path):
    members = triple("d/000", similarity=0.3, caption="from json") | triple("d/001") | {"d/001.cls": b"7"}
    members |= {"d/002.WEBP": JPEG, "d/002.json": b'{"caption": "from json"}', ".hidden.txt": b"x", "README": b"x"}
    folder = tarfile.TarInfo("d/003.txt")
    folder.type = tarfile.DIRTYPE
    tar(tmp_path / "one.tar", members, extra=[folder])
    samples = all_samples(open_source("webdataset", [tmp_path / "one.tar"]))
    assert [sample.id for sample in samples] == ["one.tar/d/000", "one.tar/d/001", "one.tar/d/002"]
    assert [sample.items for sample in samples] == [(JPEG, "A dog."), (JPEG, "A dog."), (JPEG, "from json")]
    assert samples[0].meta == {"similarity": 0.3}
    assert samples[2].meta == {}


def test_webdataset_names_tell_equal_file_names_apart(tmp_path):
    for part in ("part-0", "part-1"):
        (tmp_path / part).mkdir()
        tar(tmp_path / part / "00000.tar", triple(part))
    samples = all_samples(open_source("webdataset", [tmp_path]))
    assert [sample.id for sample in samples] == ["part-0/00000.tar/part-0", "part-1/00000.tar/part-1"]


def test_webdataset_compressed(tmp_path):
    tar(tmp_path / "a.tar.gz", triple("0") | triple("1"), "w:gz")
    assert reasons(all_samples(open_source("webdataset", [tmp_path]))) == [None, None]


def test_webdataset_names_with_dots(tmp_path):
    names = ["000001", "22.05", "22.06", "235342 Track 2.0 (Clean Version)", "img", "img.v1", "v1.5/7"]
    members = {f"{name}.{kind}": content for name in names for kind, content in (("jpg", JPEG), ("txt", b"A dog."))}
    samples = all_samples(open_source("webdataset", [tar(tmp_path / "a.tar", members)]))
    assert [sample.id for sample in samples] == [f"a.tar/{name}" for name in names]
    assert {sample.items for sample in samples} == {(JPEG, "A dog.")}


def test_webdataset_extensions_of_several_parts(tmp_path):
    members = {"1.input.jpg": JPEG, "1.outputs.txt": b"A dog.", "2.jpg": JPEG, "2.mask.png": JPEG, "2.txt": b"A cat."}
    members |= {"3.a.jpg": JPEG, "3.b.jpg": JPEG, "3.txt": b"Two.", "4.heic": JPEG, "4.txt": b"No image."}
    samples = all_samples(open_source("webdataset", [tar(tmp_path / "a.tar", members)]))
    assert [sample.id for sample in samples] == [f"a.tar/{number}" for number in range(1, 5)]
    assert [sample.items[1] for sample in samples[:3]] == ["A dog.", "A cat.", "Two."]
    assert (samples[3].reason, samples[3].detail) == ("no image", "files: heic, txt")


@pytest.mark.parametrize("extension", ["jpe", "jfif", "gif", "bmp", "tif", "tiff", "avif", "jp2", "ppm", "PNG"])
def test_webdataset_images_of_all_formats(tmp_path, extension):
    members = {f"1.{extension}": JPEG, "1.txt": b"A dog."}
    (sample,) = all_samples(open_source("webdataset", [tar(tmp_path / "a.tar", members)]))
    assert sample.items == (JPEG, "A dog.")


@pytest.mark.parametrize("kinds", [("jpg", "txt"), ("txt", "jpg"), ("jpg", "json")])
def test_webdataset_files_that_do_not_follow_each_other(tmp_path, kinds):
    contents = {"jpg": JPEG, "txt": b"A dog.", "json": b'{"caption": "A dog."}'}
    members = {f"{number}.{kind}": contents[kind] for kind in kinds for number in range(3)}
    source = open_source("webdataset", [tar(tmp_path / "a.tar", members)])
    with pytest.raises(UserError, match=r"a.tar: the files of sample '0' do not follow each other; sort the tar"):
        all_samples(source)


def test_webdataset_failed_downloads_are_told_apart(tmp_path):
    failed = {"caption": "x", "status": "failed_to_download", "error_message": "404"}
    members = triple("0") | {"1.json": json.dumps(failed).encode(), "1.txt": b"x", "2.txt": b"x"}
    samples = all_samples(open_source("webdataset", [tar(tmp_path / "a.tar", members)]))
    assert reasons(samples) == [None, "image was not downloaded", "no image"]
    assert [sample.expected for sample in samples[1:]] == [True, False]


def test_folders_are_walked_through_links_and_past_hidden_files(tmp_path):
    for folder in ("data", "elsewhere", "data/.thumbnails"):
        (tmp_path / folder).mkdir()
    tar(tmp_path / "data/0.tar", triple("0"))
    tar(tmp_path / "elsewhere/1.tar", triple("1"))
    tar(tmp_path / "data/.thumbnails/2.tar", triple("2"))
    (tmp_path / "data/._0.tar").write_bytes(b"Apple's metadata")
    (tmp_path / "data/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/up").symlink_to(tmp_path / "data")
    source = open_source("webdataset", [tmp_path / "data"])
    assert [file.name for file in source.files] == ["0.tar", "more/1.tar"]


def test_webdataset_counts_samples_that_cannot_be_used(tmp_path):
    members = {"0.txt": b"no image", "1.jpg": JPEG, "2.jpg": JPEG, "2.png": JPEG, "2.txt": b"two", "3.jpg": JPEG}
    members |= {"3.txt": b"\xff", "4.jpg": JPEG, "4.json": b"{", "5.jpg": JPEG, "5.json": b"[]", "6.jpg": JPEG}
    members |= {"6.json": b'{"caption": null}'}
    assert reasons(all_samples(open_source("webdataset", [tar(tmp_path / "a.tar", members)]))) == [
        "no image",
        "no caption",
        "several images",
        "text is not UTF-8",
        "metadata is not JSON",
        "metadata is not a JSON object",
        "no caption",
    ]


def test_webdataset_ignores_links_and_refuses_names_that_lead_out(tmp_path):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"private")
    links = []
    for kind, name in ((tarfile.SYMTYPE, "8.jpg"), (tarfile.LNKTYPE, "9.jpg")):
        link = tarfile.TarInfo(name)
        link.type, link.linkname = kind, str(secret)
        links.append(link)
    members = {**triple("../up"), **triple("/etc/x"), **triple("a\\b"), **triple("ok")}
    samples = all_samples(open_source("webdataset", [tar(tmp_path / "a.tar", members, extra=links)]))
    assert reasons(samples) == ["unsafe name in archive"] * 3 + [None]


def test_webdataset_refuses_sparse_and_huge_members(tmp_path):
    path = tar(tmp_path / "a.tar", triple("0"))
    data = bytearray(path.read_bytes())
    header = tarfile.TarInfo("1.jpg")
    header.size = 1 << 40
    path.write_bytes(data[:3072] + header.tobuf() + data[3072:])  # three members of 512 + 512 bytes stand before it
    assert reasons(all_samples(open_source("webdataset", [path]))) == [
        None,
        "file in archive too large",
        "damaged archive",
    ]


@pytest.mark.parametrize("cut", [0, 100, 1000, 2049, 3072, 3500])
def test_webdataset_truncated_is_counted_not_silent(tmp_path, cut):
    path = tar(tmp_path / "a.tar", triple("0") | triple("1"))
    path.write_bytes(path.read_bytes()[:cut])
    samples = all_samples(open_source("webdataset", [path]))
    assert samples[-1].reason == "damaged archive"
    assert sum(isinstance(sample, RawSample) for sample in samples) == (cut >= 2049)  # .jpg and .txt of 0 end at 2048


def test_webdataset_damaged_header_is_counted_not_silent(tmp_path):
    path = tar(tmp_path / "a.tar", triple("0") | triple("1") | triple("2"))
    data = bytearray(path.read_bytes())
    data[3072 + 150] ^= 0xFF  # checksum of the first header of sample 1
    path.write_bytes(data)
    assert reasons(all_samples(open_source("webdataset", [path]))) == [None, "damaged archive"]


def test_webdataset_fuzzed_archives_never_crash(tmp_path):
    rng, path = random.Random(0), tmp_path / "a.tar"
    whole = tar(path, triple("0") | triple("1")).read_bytes()[:8192]
    for name, data in (("a.tar", whole), ("b.tar.gz", gzip.compress(whole, mtime=0))):
        for _ in range(150):
            broken = bytearray(data)
            for _ in range(rng.randint(1, 6)):
                broken[rng.randrange(len(broken))] = rng.randrange(256)
            (tmp_path / name).write_bytes(broken)
            source = open_source("webdataset", [tmp_path / name])
            count = source.count(source.files[0])
            assert len(list(source.read(source.files[0], 0, count))) == count


def test_bad_sources(tmp_path):
    with pytest.raises(UserError, match="'zip' is not a kind of source: expected one of captions, coco"):
        open_source("zip", [tmp_path])
    with pytest.raises(UserError, match="gone does not exist"):
        open_source("webdataset", [tmp_path / "gone"])
    with pytest.raises(UserError, match="contains no tar files"):
        open_source("webdataset", [tmp_path])
    path = tar(tmp_path / "a.tar", triple("0"))
    with pytest.raises(UserError, match="is given twice"):
        open_source("webdataset", [path, tmp_path])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("A dog.\n\tBarks.", None),
        (" \n", "empty text"),
        ("bell \x07", "control characters in text"),
        ("half a pair \ud83d", "text is not Unicode"),
    ],
)
def test_texts(text, problem):
    assert text_problem(text) == problem
