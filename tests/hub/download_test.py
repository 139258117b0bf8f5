import hashlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import constants

from seed_jax.errors import UserError
from seed_jax.files import locked
from seed_jax.hub.download import RECORD, Options, fetch
from seed_jax.hub.manifest import load_manifest
from tests.hub.servers import COMMIT, POINTER, Server

WEIGHTS = np.random.Generator(np.random.Philox(7)).bytes(400_000)
CONFIG = b'{"layers": 2}\n'
QUICK = Options(timeout=0.5, retries=2, wait=0.0, workers=2)
HUB, MIRROR = "official/model", "copies/model"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def set_endpoint(monkeypatch, url):
    """Do what HF_ENDPOINT does when the library is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def server(monkeypatch, tmp_path):
    server = Server()
    set_endpoint(monkeypatch, server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    server.files = {f"{HUB}/weights.bin": WEIGHTS, f"{HUB}/config.json": CONFIG, f"{MIRROR}/sub/weights.bin": WEIGHTS}
    server.files |= {f"{MIRROR}/sub/config.json": CONFIG, "plain/weights.bin": WEIGHTS, "plain/other.bin": WEIGHTS}
    yield server
    server.close()


def source(kind, where, extra=""):
    revision = 'revision = "main"\n' if kind == "hub" and "revision" not in extra else ""
    return f'[[artefact.source]]\n{kind} = "{where}"\n{revision}confidence = "confirmed"\n{extra}\n'


def file(path, size, digest="unknown", extra=""):
    size = f'"{size}"' if isinstance(size, str) else size
    return (
        f'[[artefact.file]]\npath = "{path}"\nsize = {size}\nsha256 = "{digest}"\nconfidence = "confirmed"\n{extra}\n'
    )


HUB_SOURCE = source("hub", HUB)
MIRROR_SOURCE = source("hub", MIRROR, 'prefix = "sub"')
KNOWN = file("weights.bin", len(WEIGHTS), sha256(WEIGHTS))
UNHASHED = file("weights.bin", "400 kB")


def manifest_text(*parts, gated="no"):
    head = 'name = "thing"\ntitle = "t"\npurpose = "p"\nlicence = "mit"\nlicence_confidence = "confirmed"\n'
    return f'[[artefact]]\n{head}gated = "{gated}"\nused_by = "tests"\n' + "".join(parts)


def run(tmp_path, *parts, options=QUICK, **keys):
    path = tmp_path / f"manifest{len(list(tmp_path.glob('manifest*')))}.toml"
    path.write_text(manifest_text(*parts, **keys))
    return fetch(load_manifest(path).resolve(["thing"]), tmp_path / "out", options)


def directory(tmp_path):
    return tmp_path / "out/thing"


def final_files(tmp_path):
    """Return what a user sees: all files but those whose names begin with a dot, and the record."""
    found = [path.relative_to(directory(tmp_path)) for path in directory(tmp_path).rglob("*") if path.is_file()]
    return {str(path) for path in found if not str(path).startswith(".")} - {RECORD}


def partial_bytes(tmp_path):
    return sum(path.stat().st_size for path in directory(tmp_path).glob(".partial/*"))


def test_fetches_from_a_hub_and_records_hashes(server, tmp_path):
    fetched = run(tmp_path, HUB_SOURCE, KNOWN, file("config.json", "14 B"))
    assert {entry.path.name: (entry.sha256, entry.downloaded) for entry in fetched} == {
        "weights.bin": (sha256(WEIGHTS), True),
        "config.json": (sha256(CONFIG), True),
    }
    assert (directory(tmp_path) / "weights.bin").read_bytes() == WEIGHTS
    assert (directory(tmp_path) / "config.json").read_bytes() == CONFIG
    record = json.loads((directory(tmp_path) / RECORD).read_text())
    assert record["licence"] == "mit"
    assert record["files"]["config.json"]["sha256"] == sha256(CONFIG)
    assert record["files"]["config.json"]["revision"] == COMMIT
    assert [record["files"][name]["sha256_in_manifest"] for name in ("weights.bin", "config.json")] == [True, False]
    assert not list(directory(tmp_path).glob(".partial"))


def test_a_second_run_reads_nothing_from_the_network(server, tmp_path):
    run(tmp_path, HUB_SOURCE, KNOWN, file("config.json", "14 B"))
    server.requests.clear()
    fetched = run(tmp_path, HUB_SOURCE, KNOWN, file("config.json", "14 B"))
    assert [entry.downloaded for entry in fetched] == [False, False]
    assert server.requests == []


def test_fetches_from_a_plain_server_under_another_name(server, tmp_path):
    renamed = source("url", f"{server.url}/plain", 'paths = { "weights.bin" = "other.bin" }')
    run(tmp_path, renamed, KNOWN)
    assert (directory(tmp_path) / "weights.bin").read_bytes() == WEIGHTS
    assert [request.path for request in server.requests] == ["plain/other.bin"]


def test_abbreviated_revisions_are_looked_up(server, tmp_path, caplog):
    run(tmp_path, source("hub", HUB, f'revision = "{COMMIT[:7]}"'), KNOWN)
    assert server.reads("weights.bin")[0].path == f"{HUB}/resolve/{COMMIT}/weights.bin"
    shutil.rmtree(tmp_path / "out")
    run(tmp_path, source("hub", HUB, 'revision = "fedcba9"'), KNOWN)
    assert "no commit fedcba9" in caplog.text
    assert "main branch" in caplog.text


def test_optional_files_come_on_request(server, tmp_path):
    parts = (HUB_SOURCE, KNOWN, file("config.json", "14 B", extra="optional = true"))
    run(tmp_path, *parts)
    assert final_files(tmp_path) == {"weights.bin"}
    run(tmp_path, *parts, options=Options(optional=True))
    assert final_files(tmp_path) == {"weights.bin", "config.json"}


@pytest.mark.parametrize("kind", ["hub", "url"])
@pytest.mark.parametrize("fault", ["truncated", "stalled", "503"])
def test_broken_connections_continue_where_they_ended(server, tmp_path, kind, fault):
    key, where = ("plain/weights.bin", f"{server.url}/plain") if kind == "url" else (f"{HUB}/weights.bin", HUB)
    server.fail(key, fault, fault)
    run(tmp_path, source(kind, where), KNOWN)
    assert (directory(tmp_path) / "weights.bin").read_bytes() == WEIGHTS
    reads = server.reads("weights.bin")
    assert len(reads) == 3
    if fault != "503":
        assert reads[0].range is None
        starts = [int(read.range.removeprefix("bytes=").rstrip("-")) for read in reads[1:]]
        assert 0 < starts[0] < starts[1] < len(WEIGHTS)


@pytest.mark.parametrize("hashed", [True, False])
def test_another_run_continues_where_the_last_ended(server, tmp_path, hashed):
    described = KNOWN if hashed else file("weights.bin", len(WEIGHTS))
    plain = source("url", f"{server.url}/plain")
    server.fail("plain/weights.bin", "truncated", "503", forever=True)
    with pytest.raises(UserError, match=r"weights\.bin of thing.*503.*run the same command again"):
        run(tmp_path, plain, described)
    assert final_files(tmp_path) == set()
    had = partial_bytes(tmp_path)
    assert 0 < had < len(WEIGHTS)
    server.fail("plain/weights.bin")
    run(tmp_path, plain, described)
    assert (directory(tmp_path) / "weights.bin").read_bytes() == WEIGHTS
    assert server.reads("weights.bin")[-1].range == f"bytes={had}-"
    assert not list(directory(tmp_path).glob(".partial"))


def test_a_file_that_changed_meanwhile_is_read_from_the_start(server, tmp_path):
    plain, described = source("url", f"{server.url}/plain"), file("weights.bin", len(WEIGHTS))
    server.fail("plain/weights.bin", "truncated", "503", forever=True)
    with pytest.raises(UserError, match="503"):
        run(tmp_path, plain, described)
    server.fail("plain/weights.bin")
    server.files["plain/weights.bin"] = WEIGHTS[::-1]
    run(tmp_path, plain, described)
    assert (directory(tmp_path) / "weights.bin").read_bytes() == WEIGHTS[::-1]
    assert server.reads("weights.bin")[-1].range is None


def test_servers_that_ignore_ranges_are_read_from_the_start(server, tmp_path):
    server.fail(f"{HUB}/weights.bin", "truncated", "ignore range")
    run(tmp_path, HUB_SOURCE, KNOWN)
    assert (directory(tmp_path) / "weights.bin").read_bytes() == WEIGHTS


def test_a_mirror_continues_what_another_began(server, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    server.fail(f"{HUB}/weights.bin", "truncated", "404", forever=True)
    run(tmp_path, HUB_SOURCE, MIRROR_SOURCE, KNOWN)
    assert (directory(tmp_path) / "weights.bin").read_bytes() == WEIGHTS
    assert server.reads("sub/weights.bin")[0].range is not None
    assert f"{HUB}@main: HTTP 404" in caplog.text
    assert f"continued at 200 kB from {MIRROR}" in caplog.text


def test_parts_of_two_contents_are_read_again_from_the_start(server, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    # An earlier server gave the first half of something else.
    server.files["plain/weights.bin"] = bytes(len(WEIGHTS))
    server.fail("plain/weights.bin", "truncated", "404", forever=True)
    run(tmp_path, source("url", f"{server.url}/plain"), MIRROR_SOURCE, KNOWN)
    assert (directory(tmp_path) / "weights.bin").read_bytes() == WEIGHTS
    assert "read again from the start" in caplog.text


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("403", "HTTP 403, forbidden"),
        ("404", "HTTP 404, not there"),
        ("page", "HTML page"),
        ("page as data", "HTML or XML page.* 54 bytes where 400,000"),
        ("pointer", "Git LFS pointer.*1,228,836,570.* 135 bytes where 400,000"),
        ("changed", "SHA-256"),
        ("no length", "does not say how long|only 200,000 of 400,000"),
        ("truncated", "connection ended early|only"),
        ("silent", "no data for 0.5 s"),
        ("redirect loop", "too many redirects"),
    ],
)
def test_faults_are_named_and_the_mirror_helps(server, tmp_path, caplog, fault, words):
    # Of a plain server: a hub states size and hash before, which the next test is about.
    plain = source("url", f"{server.url}/plain")
    server.fail("plain/weights.bin", fault, forever=True)
    with pytest.raises(UserError, match=rf"Cannot fetch weights\.bin of thing \(.*({words}).*: run the same") as error:
        run(tmp_path, plain, KNOWN)
    assert "\n" not in str(error.value)
    assert final_files(tmp_path) == set()
    run(tmp_path, plain, MIRROR_SOURCE, KNOWN)
    assert (directory(tmp_path) / "weights.bin").read_bytes() == WEIGHTS
    assert re.search(words, caplog.text)


@pytest.mark.parametrize(
    ("fault", "words"), [("page as data", "HTML or XML page"), ("pointer", r"Git LFS pointer.*1,228,836,570 bytes")]
)
def test_pages_and_pointers_are_named_where_no_size_is_known(server, tmp_path, fault, words):
    server.fail("plain/weights.bin", f"head {fault}", forever=True)
    with pytest.raises(UserError, match=f"the file there is an? {words}"):
        run(tmp_path, source("url", f"{server.url}/plain"), file("weights.bin", "unknown"))
    assert final_files(tmp_path) == set()


def test_unstated_length_without_any_check_is_refused(server, tmp_path):
    server.fail("plain/weights.bin", "head 403", "no length", forever=True)
    with pytest.raises(UserError, match="does not say how long"):
        run(tmp_path, source("url", f"{server.url}/plain"), file("weights.bin", "unknown"))


@pytest.mark.parametrize("content", [WEIGHTS[:200_000], bytes(400_000)])
def test_another_file_on_a_hub_is_refused_before_it_is_read(server, tmp_path, content):
    server.files[f"{HUB}/weights.bin"] = content
    with pytest.raises(UserError, match=r"the file there has .* expected"):
        run(tmp_path, HUB_SOURCE, KNOWN)
    assert server.reads("weights.bin") == []


def test_known_wrong_files_are_named(server, tmp_path):
    server.files[f"{HUB}/weights.bin"] = bytes(400_000)
    wrong = f'[[artefact.wrong]]\nsha256 = "{sha256(bytes(400_000))[:12]}..."\nwhat = "the smaller sibling"\n'
    with pytest.raises(UserError, match="is the smaller sibling"):
        run(tmp_path, HUB_SOURCE, KNOWN, wrong)
    directory(tmp_path).mkdir(exist_ok=True)
    (directory(tmp_path) / "weights.bin").write_bytes(bytes(400_000))
    with pytest.raises(UserError, match=r"weights\.bin is the smaller sibling: delete it"):
        run(tmp_path, HUB_SOURCE, KNOWN, wrong)


def test_leading_digits_of_a_hash_are_compared(server, tmp_path):
    with pytest.raises(UserError, match="SHA-256"):
        run(tmp_path, source("url", f"{server.url}/plain"), file("weights.bin", "400 kB", "0123456789..."))
    run(tmp_path, source("url", f"{server.url}/plain"), file("weights.bin", "400 kB", sha256(WEIGHTS)[:20] + "..."))
    assert final_files(tmp_path) == {"weights.bin"}


def test_content_is_compared_with_what_the_hub_states(server, tmp_path):
    server.fail(f"{HUB}/weights.bin", "changed", forever=True)
    server.fail(f"{HUB}/config.json", "changed", forever=True)
    with pytest.raises(UserError, match=r"SHA-256 .* the server states"):
        run(tmp_path, HUB_SOURCE, UNHASHED)
    with pytest.raises(UserError, match="content that the repository states"):
        run(tmp_path, HUB_SOURCE, file("config.json", "unknown"))
    assert final_files(tmp_path) == set()


def test_unknown_hashes_are_recorded_and_compared_later(server, tmp_path):
    plain = source("url", f"{server.url}/plain")
    run(tmp_path, plain, UNHASHED)
    path = directory(tmp_path) / "weights.bin"
    path.write_bytes(b"\0" + WEIGHTS[1:])
    with pytest.raises(UserError, match=rf"weights\.bin has the SHA-256 .* {RECORD} has .* delete it"):
        run(tmp_path, plain, UNHASHED)
    path.unlink()
    server.files["plain/weights.bin"] = bytes(400_000)
    with pytest.raises(UserError, match=f"{RECORD} of an earlier download has"):
        run(tmp_path, plain, UNHASHED)
    assert final_files(tmp_path) == set()
    (directory(tmp_path) / RECORD).unlink()
    run(tmp_path, plain, UNHASHED)
    assert path.read_bytes() == bytes(400_000)


def test_damaged_files_in_place_are_named_and_kept(server, tmp_path):
    run(tmp_path, HUB_SOURCE, KNOWN)
    path = directory(tmp_path) / "weights.bin"
    path.write_bytes(WEIGHTS[:1000])
    with pytest.raises(UserError, match=r"1,000 bytes where 400,000 .*half-finished.*delete it"):
        run(tmp_path, HUB_SOURCE, KNOWN)
    assert path.read_bytes() == WEIGHTS[:1000]
    path.write_bytes(bytes([WEIGHTS[0] ^ 1]) + WEIGHTS[1:])
    with pytest.raises(UserError, match="SHA-256"):
        run(tmp_path, HUB_SOURCE, KNOWN)


def test_approximate_sizes_refuse_large_files_and_warn_of_small_ones(server, tmp_path, caplog):
    plain = source("url", f"{server.url}/plain")
    server.files["plain/weights.bin"] = bytes(range(250)) * 6000  # 1.5 MB
    with pytest.raises(UserError, match=r"1\.5 MB where about 1\.6 MB"):
        run(tmp_path, plain, file("weights.bin", "1.6 MB"))
    run(tmp_path, plain, file("weights.bin", "1.51 MB"))
    server.files["plain/config.json"] = CONFIG
    run(tmp_path, plain, file("config.json", "30 B"))
    assert "14 B where about 30 B" in caplog.text


def test_a_pointer_in_place_is_replaced(server, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    directory(tmp_path).mkdir(parents=True)
    (directory(tmp_path) / "weights.bin").write_bytes(POINTER)
    run(tmp_path, HUB_SOURCE, KNOWN)
    assert (directory(tmp_path) / "weights.bin").read_bytes() == WEIGHTS
    assert "Git LFS pointer" in caplog.text


def test_redirects_are_followed_without_the_token(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    elsewhere = Server()
    try:
        elsewhere.files["plain/moved"] = WEIGHTS
        server.fail(f"{HUB}/weights.bin", "redirect")
        server.redirect_to = elsewhere.url
        run(tmp_path, HUB_SOURCE, KNOWN)
        assert (directory(tmp_path) / "weights.bin").read_bytes() == WEIGHTS
        assert server.reads("weights.bin")[0].authorization == "Bearer secret"
        assert [request.authorization for request in elsewhere.requests] == [None]
    finally:
        elsewhere.close()


def test_gated_repositories_need_a_token(server, tmp_path, monkeypatch, caplog):
    server.gates.add(HUB)
    copy = source("hub", MIRROR, 'prefix = "sub"\nungated_copy = true')
    with pytest.raises(UserError, match=rf"gated.*accept the licence at .*/{HUB}, then set HF_TOKEN.*--accept-licence"):
        run(tmp_path, HUB_SOURCE, copy, KNOWN, gated="yes")
    assert final_files(tmp_path) == set()
    assert not [request for request in server.requests if request.path.startswith(MIRROR)]
    monkeypatch.setenv("HF_TOKEN", "secret")
    run(tmp_path, HUB_SOURCE, copy, KNOWN, gated="yes")
    assert final_files(tmp_path) == {"weights.bin"}
    assert "secret" not in caplog.text
    monkeypatch.delenv("HF_TOKEN")
    shutil.rmtree(tmp_path / "out")
    options = Options(accept_licence=True, timeout=0.5, retries=0)
    run(tmp_path, HUB_SOURCE, copy, KNOWN, gated="yes", options=options)
    assert server.reads("sub/weights.bin")


def test_missing_repositories_and_files_are_told_apart(server, tmp_path):
    with pytest.raises(UserError, match="gone/model@main: the repository does not exist"):
        run(tmp_path, source("hub", "gone/model"), KNOWN)
    with pytest.raises(UserError, match=r"has no file none\.bin"):
        run(tmp_path, HUB_SOURCE, file("none.bin", "unknown"))


def test_an_endpoint_that_is_no_hub_is_named(server, tmp_path, monkeypatch):
    server.files["plain/official/model/resolve/main/weights.bin"] = WEIGHTS
    set_endpoint(monkeypatch, f"{server.url}/plain")
    with pytest.raises(UserError, match=r"does not answer like a hub.*check HF_ENDPOINT"):
        run(tmp_path, HUB_SOURCE, KNOWN)


def test_no_connection_is_named(server, tmp_path):
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9: no connection"):
        run(tmp_path, source("url", "http://127.0.0.1:9"), KNOWN)


def test_offline_takes_the_cache_only(server, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    short = source("hub", HUB, f'revision = "{COMMIT[:9]}"')
    with pytest.raises(
        UserError, match=r"HF_HUB_OFFLINE is set and the file is not in the cache.*unset HF_HUB_OFFLINE"
    ):
        run(tmp_path, short, KNOWN)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        run(tmp_path, source("url", f"{server.url}/plain"), KNOWN)
    snapshot = tmp_path / "cache/models--official--model/snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "weights.bin").write_bytes(WEIGHTS)
    run(tmp_path, short, KNOWN)
    assert (directory(tmp_path) / "weights.bin").read_bytes() == WEIGHTS
    assert server.requests == []


def test_the_cache_spares_the_download_but_not_the_check(server, tmp_path):
    snapshot = tmp_path / "cache/models--official--model/snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    cached = source("hub", HUB, f'revision = "{COMMIT}"')
    (snapshot / "weights.bin").write_bytes(bytes(400_000))
    with pytest.raises(UserError, match="SHA-256"):
        run(tmp_path, cached, KNOWN)
    (snapshot / "weights.bin").write_bytes(WEIGHTS)
    run(tmp_path, cached, KNOWN)
    assert final_files(tmp_path) == {"weights.bin"}
    assert server.requests == []


def test_manual_files_are_asked_for_and_checked(server, tmp_path):
    page = source("manual", "https://example.org/folder")
    with pytest.raises(UserError, match=r"by hand from https://example\.org/folder to .*out/thing/weights\.bin.*again"):
        run(tmp_path, page, UNHASHED)
    (directory(tmp_path) / "weights.bin").write_bytes(b"<html>Virus scan warning</html>")
    with pytest.raises(UserError, match="HTML"):
        run(tmp_path, page, UNHASHED)
    (directory(tmp_path) / "weights.bin").write_bytes(WEIGHTS)
    run(tmp_path, page, UNHASHED)
    record = json.loads((directory(tmp_path) / RECORD).read_text())
    assert record["files"]["weights.bin"]["sha256"] == sha256(WEIGHTS)


def test_space_is_checked_before_anything_is_read(server, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=300_000))
    with pytest.raises(UserError, match=r"300 kB free but 400 kB .* free 100 kB there or choose another --to"):
        run(tmp_path, HUB_SOURCE, KNOWN)
    assert server.requests == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_ends_the_run_with_one_sentence(server, tmp_path):
    path = tmp_path / "manifest.toml"
    path.write_text(manifest_text(HUB_SOURCE, KNOWN))
    out = tmp_path / "out"
    (out / "thing/.partial").mkdir(parents=True)
    # Where the bytes of this content are collected.
    partial = f"weights.bin.{sha256(sha256(WEIGHTS).encode())[:12]}"
    (out / "thing/.partial" / partial).symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"became full.*free some space and run"):
        fetch(load_manifest(path).resolve(["thing"]), out, QUICK)
    assert not (out / "thing/weights.bin").exists()


def test_a_failure_leaves_the_other_files_complete(server, tmp_path):
    server.files[f"{HUB}/more.bin"] = WEIGHTS
    parts = (HUB_SOURCE, file("weights.bin", 400_000, "0" * 64), file("more.bin", 400_000), file("none.bin", "unknown"))
    with pytest.raises(UserError, match=r"2 of 3 files") as error:
        run(tmp_path, *parts)
    assert "weights.bin" in str(error.value)
    assert "none.bin" in str(error.value)
    assert final_files(tmp_path) == {"more.bin"}


def test_files_are_read_in_parallel(server, tmp_path):
    names = [f"part{index}.bin" for index in range(3)]
    for name in names:
        server.files[f"{HUB}/{name}"] = WEIGHTS
        server.fail(f"{HUB}/{name}", "together")  # answers once all three were asked for
    described = [file(name, 400_000, sha256(WEIGHTS)) for name in names]
    run(tmp_path, HUB_SOURCE, *described, options=Options(workers=3))
    assert final_files(tmp_path) == set(names)


def test_many_small_files_do_not_disturb_each_other(server, tmp_path):
    names = [f"{index}.json" for index in range(40)]
    server.files |= {f"{HUB}/{name}": CONFIG for name in names}
    run(tmp_path, HUB_SOURCE, *(file(name, len(CONFIG), sha256(CONFIG)) for name in names), options=Options(workers=8))
    assert final_files(tmp_path) == set(names)
    assert set(json.loads((directory(tmp_path) / RECORD).read_text())["files"]) == set(names)
    assert not list(directory(tmp_path).glob(".partial"))


def test_two_processes_do_not_write_the_same_directory(server, tmp_path):
    directory(tmp_path).mkdir(parents=True)
    with (
        locked(directory(tmp_path) / ".fetch.lock", "thing"),
        pytest.raises(UserError, match=rf"out/thing is being written by process {os.getpid()}"),
    ):
        run(tmp_path, HUB_SOURCE, KNOWN)
    run(tmp_path, HUB_SOURCE, KNOWN)


def test_faults_of_the_directory_are_named(server, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match=r"Cannot write to .*out .*another --to"):
        run(tmp_path, HUB_SOURCE, KNOWN)
    (tmp_path / "out").unlink()
    (directory(tmp_path) / "weights.bin").mkdir(parents=True)
    with pytest.raises(UserError, match="not a regular file"):
        run(tmp_path, HUB_SOURCE, KNOWN)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": []}', '{"files": {"weights.bin": 3}}', "\x00"])
def test_a_damaged_record_is_named(server, tmp_path, content):
    run(tmp_path, HUB_SOURCE, KNOWN)
    (directory(tmp_path) / RECORD).write_text(content)
    with pytest.raises(UserError, match=rf"{RECORD} is damaged: delete it"):
        run(tmp_path, HUB_SOURCE, KNOWN)


def test_a_killed_process_leaves_nothing_that_looks_complete(server, tmp_path):
    """Also with the settings of the environment, which the other tests set in the library."""
    path = tmp_path / "manifest.toml"
    path.write_text(manifest_text(source("hub", HUB, f'revision = "{COMMIT[:7]}"'), KNOWN))
    server.fail(f"{HUB}/weights.bin", "stalled")
    program = (
        "import sys; from pathlib import Path; from seed_jax.hub.download import fetch; "
        "from seed_jax.hub.manifest import load_manifest; "
        "fetch(load_manifest(Path(sys.argv[1])).resolve(['thing']), Path(sys.argv[2]))"
    )
    environment = os.environ | {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", program, str(path), str(tmp_path / "out")]
    process = subprocess.Popen(command, env=environment, cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 60
    while partial_bytes(tmp_path) == 0 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    had = partial_bytes(tmp_path)
    assert had > 0
    assert final_files(tmp_path) == set()
    subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], check=True, timeout=60)
    assert (directory(tmp_path) / "weights.bin").read_bytes() == WEIGHTS
    assert server.reads("weights.bin")[-1].range == f"bytes={had}-"
