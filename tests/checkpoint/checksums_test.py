"""Bit rot is an error where it is read, and never another model; damaged checkpoints fall back to the one before."""

import gc
import random
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from seed_jax import sharding
from seed_jax.checkpoint import checksums, lazy, model_dir
from seed_jax.checkpoint.store import Store
from seed_jax.checkpoint.verify import verify
from seed_jax.errors import UserError

META = {"architecture": {"hidden": 8}}
FLIPS = [5, pytest.param(120, marks=pytest.mark.slow)]


@pytest.fixture(scope="module", autouse=True)
def _small_heap():
    """A damaged read ends with a garbage collection: among the objects of a whole test session it takes seconds."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    bit = rng.randrange(8 * len(content))
    content[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(content)


def files(directory: Path) -> list[Path]:
    return sorted(path.relative_to(directory) for path in directory.rglob("*") if path.is_file())


def draw(directory: Path, rng: random.Random) -> Path:
    """Draw a file as bit rot does: by its size."""
    names = files(directory)
    return rng.choices(names, [(directory / name).stat().st_size for name in names])[0]


def weights() -> dict:
    rng = np.random.default_rng(0)
    return {"layers": {"kernel": rng.standard_normal((4, 64, 64), np.float32)}, "scale": np.ones(7, np.float32)}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "m"
    return model_dir.save(directory, "llama", {"sizes": {}}, weights())


@pytest.mark.timeout(1800)  # 120 flips: eight minutes on a shared core
@pytest.mark.parametrize("flips", FLIPS)
def test_flipped_bits_of_a_model_directory_are_all_noticed(model, tmp_path, flips):
    rng = random.Random(flips)
    for number in range(flips):
        copy = tmp_path / str(number)
        shutil.copytree(model, copy)
        name = draw(copy, rng)
        flip(copy / name, rng)
        assert any(str(name) in problem for problem in verify(copy).problems) or name.name == checksums.FILE, name
        for load in (model_dir.load, lambda path: lazy.materialize(model_dir.open_lazily(path).params)):
            try:
                read = load(copy)
            except UserError:
                continue
            # A bit of a file that holds no weights.
            read = read.params if isinstance(read, model_dir.ModelDir) else read
            jax.tree.map(np.testing.assert_array_equal, read, weights())
            assert not (name.parent.name == "d" and (copy / name).stat().st_size > 10_000), name


def test_a_flipped_bit_is_noticed_in_the_layer_that_it_is_in(tmp_path, monkeypatch):
    monkeypatch.setattr(lazy, "CHUNK_BYTES", 64)  # one chunk for each layer
    rng = np.random.default_rng(0)
    stack = rng.integers(0, 256, (4, 100, 100), np.uint8)
    model_dir.save(tmp_path / "m", "llama", {"sizes": {}}, {"kernel": stack})
    piece = stack[2].tobytes()[5000:5050]  # random bytes are stored uncompressed within their frame
    (data,) = [path for path in (tmp_path / "m/params").rglob("d/*") if piece in path.read_bytes()]
    data.write_bytes(data.read_bytes().replace(piece, bytes([piece[0] ^ 1]) + piece[1:]))
    kernel = model_dir.open_lazily(tmp_path / "m").params["kernel"]
    np.testing.assert_array_equal(kernel[1], stack[1])
    with pytest.raises(UserError, match=r"damaged.*checksum"):
        kernel[2]


@pytest.mark.parametrize(
    ("chunk", "part"),
    [
        ((), ()),
        ((0, 8), (0, 8)),
        ((4, 2, 3), (4, 2, 3)),
        ((1, 4096, 11008), (1, 32, 11008)),
        ((16, 1024, 1024), (1, 256, 1024)),
        ((40192, 4096), (64, 4096)),
        ((50257,), (50257,)),
        ((1000003,), (1000003,)),  # a prime
    ],
)
def test_parts_divide_their_chunk(chunk, part):
    assert checksums.part_shape(chunk) == part


def test_directories_without_checksums_are_read(tmp_path):
    """As earlier versions wrote them: Zarr 2, no checksums.json."""
    model_dir.save(tmp_path / "m", "llama", {"sizes": {}}, None)
    (tmp_path / "m" / checksums.FILE).unlink()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_zarr3=False)) as checkpointer:
        checkpointer.save((tmp_path / "m/params").absolute(), args=ocp.args.PyTreeSave(weights()))
    jax.tree.map(np.testing.assert_array_equal, model_dir.load(tmp_path / "m").params, weights())
    opened = model_dir.open_lazily(tmp_path / "m").params
    jax.tree.map(np.testing.assert_array_equal, lazy.materialize(opened), weights())
    assert verify(tmp_path / "m").problems == []


def test_the_damaged_file_is_named(model, tmp_path):
    shutil.copytree(model, tmp_path / "m")
    assert verify(tmp_path / "m").problems == []
    flip(tmp_path / "m/params/manifest.ocdbt", random.Random(0))
    (tmp_path / "m/config.json").unlink()
    for directory in (tmp_path / "m", tmp_path):
        problems = "\n".join(verify(directory).problems)
        assert "manifest.ocdbt is not what was written" in problems
        assert "config.json is missing" in problems
    with pytest.raises(UserError, match="nowhere"):
        verify(tmp_path / "nowhere")


# Training checkpoints.


def state(value: float) -> dict:
    mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2})
    sharded = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    kernel = value + np.random.default_rng(0).standard_normal((64, 64), np.float32)
    return {"w": jax.device_put(kernel, sharded)}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A workdir with checkpoints of steps 1 and 2, whose values are their step."""
    workdir = tmp_path_factory.mktemp("run")
    store = Store(workdir)
    for step in (1, 2):
        store.save(step, params=state(step), optimizer=state(step), data={"position": step}, meta=META)
    store.close()
    return workdir


def restored_step(workdir: Path) -> int:
    """Restore, check every value, and return the step."""
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0))
    store = Store(workdir)
    found = store.restore(like, like, META)
    store.close()
    assert found is not None
    for values in (found.params, found.optimizer):
        np.testing.assert_array_equal(values["w"], state(found.step)["w"])
    assert found.data == {"position": found.step}
    return found.step


@pytest.mark.parametrize("how", ["truncated", "deleted", pytest.param("emptied", marks=pytest.mark.slow)])
def test_any_damaged_file_of_the_newest_checkpoint_falls_back(run, tmp_path, how, caplog):
    """Files that hold nothing of what is restored may be damaged without consequence."""
    fallbacks = set()
    for number, name in enumerate(files(run / "checkpoints/2")):
        copy = tmp_path / str(number)
        shutil.copytree(run, copy)
        path = copy / "checkpoints/2" / name
        if how == "deleted":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if how == "truncated" else b"")
        caplog.clear()
        if restored_step(copy) == 1:
            fallbacks.add(str(name))
            assert "checkpoints/2: it is damaged" in caplog.text
            assert verify(copy).problems, name
    for item in ("params", "optimizer"):
        assert f"{item}/manifest.ocdbt" in fallbacks
        largest = max((run / "checkpoints/2" / item).rglob("d/*"), key=lambda path: path.stat().st_size)
        assert str(largest.relative_to(run / "checkpoints/2")) in fallbacks
    assert {"data/metadata", "meta/metadata"} <= fallbacks


@pytest.mark.parametrize("flips", FLIPS)
def test_flipped_bits_of_a_checkpoint_never_change_what_is_restored(run, tmp_path, flips):
    steps = []
    for number in range(flips):
        # One stream per flip: how files divide the data differs from run to run, and so how many numbers a flip draws.
        rng = random.Random(f"{flips} {number}")
        copy = tmp_path / str(number)
        shutil.copytree(run, copy)
        flip(copy / "checkpoints/2" / draw(copy / "checkpoints/2", rng), rng)
        steps.append(restored_step(copy))
    assert steps.count(1) > 0.7 * flips  # the rest are bits that nothing reads
    assert verify(run).problems == []


def test_a_flipped_bit_in_the_position_of_the_data_is_noticed(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run/checkpoints/2/data/metadata"
    path.write_text(path.read_text().replace('"position": 2', '"position": 3'))
    assert restored_step(tmp_path / "run") == 1
