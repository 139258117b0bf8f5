import json
import struct
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from seed_jax.convert import tensors as tensor_files
from seed_jax.convert.tensors import LazyTensor, TensorDict, check_tensors, format_names, open_tensors
from seed_jax.errors import UserError

A = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.uint8, np.bool_])
def test_safetensors_are_read_by_name(tmp_path, dtype):
    save_file({"a": A.astype(dtype), "s": np.array(3, dtype), "e": np.zeros((0, 2), dtype)}, tmp_path / "m.safetensors")
    tensors = open_tensors(tmp_path / "m.safetensors")
    assert set(tensors) == {"a", "s", "e"}
    assert (tensors["a"].shape, tensors["a"].dtype) == ((2, 3), dtype)
    np.testing.assert_array_equal(tensors["a"].read(), A.astype(dtype))
    assert tensors["s"].read() == np.array(3, dtype)
    assert tensors["e"].read().shape == (0, 2)


def test_bfloat16_survives_both_formats(tmp_path, torch):
    from safetensors.torch import save_file as save_torch_file

    state = {"a": torch.arange(6).reshape(2, 3).to(torch.bfloat16)}
    save_torch_file(state, tmp_path / "m.safetensors")
    torch.save(state, tmp_path / "m.pt")
    for name in ("m.safetensors", "m.pt"):
        tensor = open_tensors(tmp_path / name)["a"]
        assert tensor.dtype == tensor.read().dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(tensor.read().astype(np.float32), A)


@pytest.mark.parametrize("wrapper", [None, "model", "module", "state_dict"])
@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
def test_torch_files_are_unwrapped(tmp_path, torch, wrapper, old):
    state = {"a": torch.from_numpy(A).t(), "n": torch.tensor(2)}
    wrapped = state if wrapper is None else {wrapper: state, "epoch": 3}
    torch.save(wrapped, tmp_path / "m.pth", _use_new_zipfile_serialization=not old)
    tensors = open_tensors(tmp_path / "m.pth")
    assert set(tensors) == {"a", "n"}
    assert tensors["a"].shape == (3, 2)
    np.testing.assert_array_equal(tensors["a"].read(), A.T)


@pytest.mark.parametrize(("old", "loads"), [(False, 4), (True, 2)], ids=["zip", "legacy"])
def test_a_mapped_file_is_mapped_anew_so_that_its_pages_are_let_go(tmp_path, torch, monkeypatch, old, loads):
    state = {name: torch.full((3,), float(i)) for i, name in enumerate("abc")}
    torch.save(state, tmp_path / "m.pth", _use_new_zipfile_serialization=not old)
    monkeypatch.setattr(tensor_files, "_REMAP_BYTES", 0)
    calls, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: calls.append(1) or load(*args, **options))
    tensors = open_tensors(tmp_path / "m.pth")
    found = [tensors[name].read() for name in "abca"]
    np.testing.assert_array_equal(found, [[0.0] * 3, [1.0] * 3, [2.0] * 3, [0.0] * 3])
    # The old format cannot be mapped: it is tried, then read whole, once.
    assert len(calls) == loads


def test_several_files_are_one_model(tmp_path):
    save_file({"a": A}, tmp_path / "1.safetensors")
    save_file({"b": A + 1}, tmp_path / "2.safetensors")
    tensors = open_tensors([tmp_path / "1.safetensors", tmp_path / "2.safetensors"])
    np.testing.assert_array_equal(tensors["b"].read(), A + 1)
    assert "1.safetensors and" in tensors.source
    with pytest.raises(UserError, match="both hold a"):
        open_tensors([tmp_path / "1.safetensors", tmp_path / "1.safetensors"])


class Code:
    """What a malicious checkpoint would carry."""

    def __reduce__(self):
        return print, ("executed",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, torch, capsys):
    torch.save({"a": Code()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match=r"evil\.pt cannot be read as a PyTorch file of plain tensors"):
        open_tensors(tmp_path / "evil.pt")
    assert "executed" not in capsys.readouterr().out
    with pytest.raises(UserError) as raised:
        open_tensors(tmp_path / "evil.pt")
    assert "weights_only" not in str(raised.value)  # PyTorch's advice to run the code
    assert "\x1b" not in str(raised.value)


def entry(begin: int, end: int) -> dict:
    return {"dtype": "F32", "shape": [max(end - begin, 0) // 4], "data_offsets": [begin, end]}


def safetensors_bytes(header: str, size: int) -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + bytes(size)


def bad_files(tmp_path):
    save_file({"a": A}, tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    yield "empty.safetensors", b"", "not a valid safetensors file"
    yield "short.safetensors", whole[:-4], "not a valid safetensors file"
    yield "index.safetensors", struct.pack("<Q", 10**12) + b"{}", "not a valid safetensors file"
    for name, header, size in [
        ("negative", {"a": entry(0, 4), "b": entry(-4, 0)}, 4),
        ("overlap", {"a": entry(0, 4), "b": entry(0, 4)}, 4),
        ("gap", {"a": entry(0, 4), "b": entry(8, 12)}, 12),
        ("rest", {"a": entry(0, 4)}, 8),
        ("float shape", {"a": {**entry(0, 4), "shape": [1.0]}}, 4),
        ("negative shape", {"a": {**entry(0, 4), "shape": [-1, -1]}}, 4),
        ("wrong size", {"a": {**entry(0, 4), "shape": [2]}}, 4),
        ("no object", [], 0),
    ]:
        yield f"{name}.safetensors", safetensors_bytes(json.dumps(header), size), "not a valid safetensors file"
    twice = '{"a": %s, "a": %s}' % ((json.dumps(entry(0, 0)),) * 2)
    yield "twice.safetensors", safetensors_bytes(twice, 0), "names 'a' twice"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    yield "pointer.safetensors", pointer, "Git LFS pointer"
    yield "pointer.bin", pointer, "Git LFS pointer"
    yield "page.safetensors", b"<!DOCTYPE html>" * 9, "not a valid safetensors file"
    yield "odd.safetensors", whole.replace(b'"F32"', b'"Q99"'), "not a valid safetensors file"
    yield "empty.pt", b"", "cannot be read as a PyTorch file"
    yield "page.bin", b"<!DOCTYPE html>", "cannot be read as a PyTorch file"
    yield "weights.onnx", b"", "unknown suffix"


def test_broken_files_give_one_sentence_with_their_path(tmp_path, torch):
    for name, data, reason in bad_files(tmp_path):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=reason) as raised:
            open_tensors(tmp_path / name)
        assert str(tmp_path / name) in str(raised.value)
        assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="does not exist"):
        open_tensors(tmp_path / "absent.pt")
    with pytest.raises(UserError, match="at least one"):
        open_tensors([])


def test_self_references_and_compression_in_torch_files_end(tmp_path, torch):
    state = {}
    state["model"] = state
    torch.save(state, tmp_path / "loop.pt")
    with pytest.raises(UserError, match="no dictionary of tensors"):
        open_tensors(tmp_path / "loop.pt")
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "m.pt")
    with (
        zipfile.ZipFile(tmp_path / "m.pt") as stored,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as compressed,
    ):
        for name in stored.namelist():
            compressed.writestr(name, stored.read(name))
    with pytest.raises(UserError, match="compressed archive"):
        open_tensors(tmp_path / "bomb.pt")


def test_an_archive_over_several_disks_is_refused(tmp_path, torch):
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 1, 0, 2)
    (tmp_path / "m.pt").write_bytes(bytes(64) + locator + b"PK\x05\x06" + bytes(18))
    with pytest.raises(UserError, match=r"m\.pt cannot be read as a PyTorch file"):
        open_tensors(tmp_path / "m.pt")


def test_a_file_without_tensors_is_refused(tmp_path, torch):
    torch.save({"epoch": 3}, tmp_path / "m.pt")
    with pytest.raises(UserError, match="no dictionary of tensors"):
        open_tensors(tmp_path / "m.pt")


def test_the_extra_is_named_where_torch_is_absent(tmp_path, monkeypatch):
    (tmp_path / "m.pt").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"pip install 'seed-jax\[torch\]'"):
        open_tensors(tmp_path / "m.pt")


def fake(shapes: dict) -> TensorDict:
    return TensorDict({n: LazyTensor(s, np.dtype(np.float32), lambda: None) for n, s in shapes.items()}, "file.pt")


def test_every_difference_is_listed_at_once():
    expected = {f"blocks.{i}.w": (2, 3) for i in range(12)} | {"head": (1,), "norm": (4,)}
    found = {f"blocks.{i}.w": (2, 3) for i in (0, 1, 2, 7)} | {"norm": (5,), "extra": (1,), "known": (1,)}
    with pytest.raises(UserError) as raised:
        check_tensors(expected, fake(found), ignore=["known"])
    assert str(raised.value) == (
        "The tensors in file.pt do not fit the model: missing: head, blocks.{3-6,8-11}.w; unexpected: extra; "
        "wrong shape: norm has shape (5,), expected (4,)."
    )


def test_unexpected_names_can_be_allowed_and_are_returned():
    assert check_tensors({"a": (1,)}, fake({"a": (1,), "b.10": (1,), "b.9": (1,)}), allow_unexpected=True) == [
        "b.9",
        "b.10",
    ]
    assert check_tensors({"a": (1,)}, fake({"a": (1,)})) == []


def test_listed_writes_every_name():
    names = ["fc1.w", "layer.0.w", "layer.1.w", "layer.10.b", "layer.2.w", "x.3", "x.5"]
    assert format_names(names) == "fc1.w, layer.{0-2}.w, layer.10.b, x.{3,5}"
