import gzip
import json
import random
import tarfile

import pytest

from seed_jax.data.sources import Raw, open_source
from seed_jax.data.sources.units import text_problem
from seed_jax.errors import UserError
from tests.data.sources.samples import all_units, reasons, tar

JPEG = b"\xff\xd8 bytes of a picture"


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
    units = all_units(open_source("folder", [tmp_path]))
    assert [unit.id for unit in units] == ["captions.jsonl:1", "captions.jsonl:3", "captions.jsonl:5"]
    assert units[0].items == (tmp_path / "a.jpg", "A dog.")
    assert units[0].meta == {"image": "a.jpg", "licence": "CC0"}
    assert units[1].items == (tmp_path / "sub/b.png", "One.", "Two.")
    assert units[2].items == (tmp_path / "c.jpg", "犬")


def test_folder_counts_lines_that_cannot_be_used(tmp_path):
    lines = [
        b'{"image": "a.jpg", "caption": "fine"}',
        b"{not json",
        b"[1, 2]",
        b'{"image": "a.jpg", "caption": "\xff\xfe"}',
        b'{"caption": "which picture?"}',
        b'{"image": "a.jpg"}',
        b'{"image": "a.jpg", "caption": 7}',
        b'{"image": "a.jpg", "caption": []}',
        b'{"image": "a\\u0000.jpg", "caption": "x"}',
    ]
    (tmp_path / "c.jsonl").write_bytes(b"\n".join(lines))
    assert reasons(all_units(open_source("folder", [tmp_path]))) == [
        None,
        "line is not JSON",
        "entry is not a JSON object",
        "text is not UTF-8",
        "no picture named",
        "no caption",
        "no caption",
        "no caption",
        "no picture named",
    ]


def test_folder_metadata_can_always_be_stored(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"image": "a", "caption": "b", "n": 1' + "0" * 30 + ', "x": ["\\ud800"]}')
    (unit,) = all_units(open_source("folder", [tmp_path]))
    assert unit.meta == {"image": "a", "n": "1" + "0" * 30, "x": ["?"]}


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
    units = all_units(open_source("webdataset", [tmp_path / "one.tar"]))
    assert [unit.id for unit in units] == ["one.tar/d/000", "one.tar/d/001", "one.tar/d/002"]
    assert [unit.items for unit in units] == [(JPEG, "A dog."), (JPEG, "A dog."), (JPEG, "from json")]
    assert units[0].meta == {"similarity": 0.3}
    assert units[2].meta == {}


def test_webdataset_names_tell_equal_file_names_apart(tmp_path):
    for part in ("part-0", "part-1"):
        (tmp_path / part).mkdir()
        tar(tmp_path / part / "00000.tar", triple(part))
    units = all_units(open_source("webdataset", [tmp_path]))
    assert [unit.id for unit in units] == ["part-0/00000.tar/part-0", "part-1/00000.tar/part-1"]


def test_webdataset_compressed(tmp_path):
    tar(tmp_path / "a.tar.gz", triple("0") | triple("1"), "w:gz")
    assert reasons(all_units(open_source("webdataset", [tmp_path]))) == [None, None]


def test_webdataset_counts_samples_that_cannot_be_used(tmp_path):
    members = {"0.txt": b"no picture", "1.jpg": JPEG, "2.jpg": JPEG, "2.png": JPEG, "2.txt": b"two", "3.jpg": JPEG}
    members |= {"3.txt": b"\xff", "4.jpg": JPEG, "4.json": b"{", "5.jpg": JPEG, "5.json": b"[]", "6.jpg": JPEG}
    members |= {"6.json": b'{"caption": null}'}
    assert reasons(all_units(open_source("webdataset", [tar(tmp_path / "a.tar", members)]))) == [
        "no picture",
        "no caption",
        "several pictures",
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
    units = all_units(open_source("webdataset", [tar(tmp_path / "a.tar", members, extra=links)]))
    assert reasons(units) == ["unsafe name in archive"] * 3 + [None]


def test_webdataset_refuses_sparse_and_huge_members(tmp_path):
    path = tar(tmp_path / "a.tar", triple("0"))
    data = bytearray(path.read_bytes())
    header = tarfile.TarInfo("1.jpg")
    header.size = 1 << 40
    path.write_bytes(data[:3072] + header.tobuf() + data[3072:])  # three members of 512 + 512 bytes stand before it
    assert reasons(all_units(open_source("webdataset", [path]))) == [
        None,
        "file in archive too large",
        "damaged archive",
    ]


@pytest.mark.parametrize("cut", [0, 100, 1000, 2049, 3072, 3500])
def test_webdataset_truncated_is_counted_not_silent(tmp_path, cut):
    path = tar(tmp_path / "a.tar", triple("0") | triple("1"))
    path.write_bytes(path.read_bytes()[:cut])
    units = all_units(open_source("webdataset", [path]))
    assert units[-1].reason == "damaged archive"
    assert sum(isinstance(unit, Raw) for unit in units) == (cut >= 2049)  # .jpg and .txt of 0 end at 2048


def test_webdataset_damaged_header_is_counted_not_silent(tmp_path):
    path = tar(tmp_path / "a.tar", triple("0") | triple("1") | triple("2"))
    data = bytearray(path.read_bytes())
    data[3072 + 150] ^= 0xFF  # checksum of the first header of sample 1
    path.write_bytes(data)
    assert reasons(all_units(open_source("webdataset", [path]))) == [None, "damaged archive"]


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
    with pytest.raises(UserError, match="no source of kind 'zip'; there are captions, coco"):
        open_source("zip", [tmp_path])
    with pytest.raises(UserError, match="gone does not exist"):
        open_source("webdataset", [tmp_path / "gone"])
    with pytest.raises(UserError, match="has no tars"):
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
