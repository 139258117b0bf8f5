"""Inception v3 of 2015-12-05 as pytorch-fid uses it: the 2,048 features that FID is computed from.

It differs from torchvision's network: average pools leave the padding out, the last block's pool is a maximum, and
there are 1,008 classes.
"""

import functools
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from seed_jax.errors import UserError

FEATURES = 2048
IMAGE_SIZE = 299
_CLASSES = 1008
_BATCH_NORM_EPSILON = 1e-3

Params = dict[str, dict]
_Kernel = tuple[int, int]


class _Conv(nn.Module):
    """A convolution with its batch normalization folded in, and ReLU."""

    features: int
    kernel: _Kernel = (1, 1)
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C2"]:
        # Full float32 on every device: the features are compared with those of other programs.
        precision = jax.lax.Precision.HIGHEST
        conv = nn.Conv(self.features, self.kernel, self.stride, self.padding, precision=precision, name="conv")
        return nn.relu(conv(x))


def _average_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _max_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C"]:
    return nn.max_pool(x, (3, 3), (2, 2))


class _BlockA(nn.Module):
    pool_features: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C2"]:
        five = _Conv(48, name="branch5x5_1")(x)
        five = _Conv(64, (5, 5), name="branch5x5_2")(five)
        three = _Conv(64, name="branch3x3dbl_1")(x)
        three = _Conv(96, (3, 3), name="branch3x3dbl_2")(three)
        three = _Conv(96, (3, 3), name="branch3x3dbl_3")(three)
        pool = _Conv(self.pool_features, name="branch_pool")(_average_pool(x))
        return jnp.concatenate([_Conv(64, name="branch1x1")(x), five, three, pool], -1)


class _BlockB(nn.Module):
    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C2"]:
        double = _Conv(64, name="branch3x3dbl_1")(x)
        double = _Conv(96, (3, 3), name="branch3x3dbl_2")(double)
        double = _Conv(96, (3, 3), 2, "VALID", name="branch3x3dbl_3")(double)
        return jnp.concatenate([_Conv(384, (3, 3), 2, "VALID", name="branch3x3")(x), double, _max_pool(x)], -1)


class _BlockC(nn.Module):
    inner: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C2"]:
        row, column = (1, 7), (7, 1)
        seven = _Conv(self.inner, name="branch7x7_1")(x)
        seven = _Conv(self.inner, row, name="branch7x7_2")(seven)
        seven = _Conv(192, column, name="branch7x7_3")(seven)
        double = _Conv(self.inner, name="branch7x7dbl_1")(x)
        double = _Conv(self.inner, column, name="branch7x7dbl_2")(double)
        double = _Conv(self.inner, row, name="branch7x7dbl_3")(double)
        double = _Conv(self.inner, column, name="branch7x7dbl_4")(double)
        double = _Conv(192, row, name="branch7x7dbl_5")(double)
        pool = _Conv(192, name="branch_pool")(_average_pool(x))
        return jnp.concatenate([_Conv(192, name="branch1x1")(x), seven, double, pool], -1)


class _BlockD(nn.Module):
    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C2"]:
        three = _Conv(192, name="branch3x3_1")(x)
        three = _Conv(320, (3, 3), 2, "VALID", name="branch3x3_2")(three)
        seven = _Conv(192, name="branch7x7x3_1")(x)
        seven = _Conv(192, (1, 7), name="branch7x7x3_2")(seven)
        seven = _Conv(192, (7, 1), name="branch7x7x3_3")(seven)
        seven = _Conv(192, (3, 3), 2, "VALID", name="branch7x7x3_4")(seven)
        return jnp.concatenate([three, seven, _max_pool(x)], -1)


class _BlockE(nn.Module):
    maximum: bool  # the pool of the last block

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C2"]:
        row, column = (1, 3), (3, 1)
        three = _Conv(384, name="branch3x3_1")(x)
        double = _Conv(448, name="branch3x3dbl_1")(x)
        double = _Conv(384, (3, 3), name="branch3x3dbl_2")(double)
        pool = nn.max_pool(x, (3, 3), padding="SAME") if self.maximum else _average_pool(x)
        branches = [
            _Conv(320, name="branch1x1")(x),
            _Conv(384, row, name="branch3x3_2a")(three),
            _Conv(384, column, name="branch3x3_2b")(three),
            _Conv(384, row, name="branch3x3dbl_3a")(double),
            _Conv(384, column, name="branch3x3dbl_3b")(double),
            _Conv(192, name="branch_pool")(pool),
        ]
        return jnp.concatenate(branches, -1)


class Inception(nn.Module):
    """The network up to its last pool. Modules are named as in the PyTorch file."""

    @nn.compact
    def __call__(self, x: Float[Array, "B 299 299 3"]) -> tuple[Float[Array, "B 2048"], list[Float[Array, "B C"]]]:
        """Return the features, and the means over space of the three blocks that pytorch-fid also offers.

        Args:
            x: images from -1 to 1.
        """
        x = _Conv(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x)
        x = _Conv(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x)
        x = _max_pool(_Conv(64, (3, 3), name="Conv2d_2b_3x3")(x))
        blocks = [x.mean((1, 2))]
        x = _Conv(80, name="Conv2d_3b_1x1")(x)
        x = _max_pool(_Conv(192, (3, 3), 1, "VALID", name="Conv2d_4a_3x3")(x))
        blocks.append(x.mean((1, 2)))
        for name, pool_features in (("5b", 32), ("5c", 64), ("5d", 64)):
            x = _BlockA(pool_features, name=f"Mixed_{name}")(x)
        x = _BlockB(name="Mixed_6a")(x)
        for name, inner in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            x = _BlockC(inner, name=f"Mixed_{name}")(x)
        blocks.append(x.mean((1, 2)))
        x = _BlockD(name="Mixed_7a")(x)
        x = _BlockE(False, name="Mixed_7b")(x)
        x = _BlockE(True, name="Mixed_7c")(x)
        return x.mean((1, 2)), blocks


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor of the PyTorch file `pt_inception-2015-12-05-*.pth`."""
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (_CLASSES, FEATURES), "fc.bias": (_CLASSES,)}
    for module, (height, width, inputs, outputs) in _kernels().items():
        shapes[f"{module}.conv.weight"] = (outputs, inputs, height, width)
        shapes |= {f"{module}.bn.{name}": (outputs,) for name in ("weight", "bias", "running_mean", "running_var")}
        shapes[f"{module}.bn.num_batches_tracked"] = ()
    return shapes


def import_inception(tensors: Mapping[str, np.ndarray], where: str) -> Params:
    """Return the network's parameters from tensors named as in pytorch-fid's file, batch normalization folded in.

    Args:
        tensors: the file's tensors by name; `num_batches_tracked` may be missing.
        where: what to call the file in messages.

    Raises:
        UserError: a tensor is missing, unexpected, misshapen or not finite: the file is another network's.
    """
    shapes = expected_shapes()
    unread = {name for name in shapes if name.endswith("num_batches_tracked")}
    missing = shapes.keys() - tensors.keys() - unread
    unexpected = tensors.keys() - shapes.keys()
    misshapen = [
        f"{name} is {tuple(tensors[name].shape)}, expected {shape}"
        for name, shape in shapes.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    problems = [
        *([f"{len(missing)} tensors are missing (such as {min(missing)})"] if missing else []),
        *([f"{len(unexpected)} are unexpected (such as {min(unexpected)})"] if unexpected else []),
        *([f"{len(misshapen)} are misshapen ({misshapen[0]})"] if misshapen else []),
    ]
    if problems:
        raise UserError(
            f"{where} is not the Inception network of pytorch-fid: {', '.join(problems)}; give the file"
            " pt_inception-2015-12-05-6726825d.pth or the same tensors as safetensors."
        )
    params: Params = {}
    for module in _kernels():
        weight, scale, bias, mean, variance = (
            np.asarray(tensors[f"{module}.{name}"], np.float64)
            for name in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
        )
        factor = scale / np.sqrt(variance + _BATCH_NORM_EPSILON)
        kernel, bias = weight.transpose(2, 3, 1, 0) * factor, bias - mean * factor
        if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
            raise UserError(f"{where} holds values of {module} that are not finite: download the file again.")
        leaf = params
        for name in module.split("."):
            leaf = leaf.setdefault(name, {})
        leaf["conv"] = {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}
    return params


def resize_bilinear(image: UInt8[np.ndarray, "H W 3"], size: int = IMAGE_SIZE) -> Float[np.ndarray, "{size} {size} 3"]:
    """Resize without antialiasing, pixel centres aligned, as PyTorch's `interpolate` does; from -1 to 1."""
    pixels = image.astype(np.float32) / 255
    for axis in (0, 1):
        length = pixels.shape[axis]
        position = np.clip((np.arange(size) + 0.5) * (length / size) - 0.5, 0, None)
        low = np.minimum(position.astype(np.int64), length - 1)
        weight = (position - low).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        high = np.minimum(low + 1, length - 1)
        pixels = pixels.take(low, axis) * (1 - weight) + pixels.take(high, axis) * weight
    return 2 * pixels - 1


def inception_features(
    params: Params, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], batch_size: int | None = None
) -> Float[np.ndarray, "N 2048"]:
    """Return the features of images of any sizes.

    Args:
        params: from `import_inception`.
        images: RGB images.
        batch_size: fill up to this number of images, so that one program serves a last, smaller batch too.
    """
    batch = np.zeros((max(len(images), batch_size or 0), IMAGE_SIZE, IMAGE_SIZE, 3), np.float32)
    for index, image in enumerate(images):
        batch[index] = resize_bilinear(image)
    return np.asarray(_features(params, batch))[: len(images)]


@jax.jit
def _features(params: Params, images: Float[Array, "B 299 299 3"]) -> Float[Array, "B 2048"]:
    return Inception().apply({"params": params}, images)[0]


@functools.cache
def _kernels() -> dict[str, tuple[int, ...]]:
    """Return module name and kernel shape [height, width, inputs, outputs] of every convolution."""
    images = jax.ShapeDtypeStruct((1, IMAGE_SIZE, IMAGE_SIZE, 3), np.float32)
    params = jax.eval_shape(Inception().init, jax.random.key(0), images)["params"]
    leaves = jax.tree_util.tree_leaves_with_path(params)
    paths = [([key.key for key in path], leaf) for path, leaf in leaves]
    return {".".join(names[:-2]): leaf.shape for names, leaf in paths if names[-1] == "kernel"}
