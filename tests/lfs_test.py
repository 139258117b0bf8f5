import pytest

from seed_jax.errors import UserError
from seed_jax.lfs import LfsPointer, check_not_pointer, lfs_pointer
from tests.hub.servers import POINTER

SHA256 = "322a9fba55cb0e97e1a633981fbbdff20577af69146a0f23fa7b14201459a13f"


def test_pointers_are_recognised(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(POINTER)
    assert lfs_pointer(path) == LfsPointer(SHA256, 1228836570)
    path.write_bytes(POINTER.replace(b"\n", b"\r\n"))  # checked out on Windows
    assert lfs_pointer(path) == LfsPointer(SHA256, 1228836570)
    path.write_bytes(POINTER[:60])
    assert lfs_pointer(path) == LfsPointer(None, None)


@pytest.mark.parametrize("content", [b"", b"\x80\x02}", b"version 1", POINTER[1:], POINTER + bytes(2000)])
def test_other_files_are_not_pointers(tmp_path, content):
    path = tmp_path / "weights.bin"
    path.write_bytes(content)
    assert lfs_pointer(path) is None
    check_not_pointer(path)


def test_missing_files_and_directories_are_not_pointers(tmp_path):
    assert lfs_pointer(tmp_path / "none") is None
    assert lfs_pointer(tmp_path) is None


def test_the_error_names_the_file_and_the_remedy(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(POINTER)
    with pytest.raises(UserError, match=r"weights\.bin is a Git LFS pointer: .*1,228,836,570 bytes.*git lfs pull"):
        check_not_pointer(path)
