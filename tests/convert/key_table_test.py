import numpy as np
import pytest

from seed_jax.convert.key_table import CONV, MATRIX, SAME, Entry, Layout, assemble, disassemble, expected_shapes
from seed_jax.convert.tensors import Tensor, Tensors


def tensors(arrays: dict[str, np.ndarray]) -> Tensors:
    return Tensors({n: Tensor(a.shape, a.dtype, lambda a=a: a) for n, a in arrays.items()}, "arrays")


@pytest.mark.parametrize(
    ("layout", "theirs", "ours"),
    [
        (SAME, (5, 6), (5, 6)),
        (MATRIX, (5, 6), (6, 5)),
        (CONV, (5, 6, 7, 8), (7, 8, 6, 5)),
        (Layout(lead=2), (1, 1, 5), (5,)),
        (Layout(axes=(1, 0), lead=1), (1, 5, 6), (6, 5)),
    ],
)
def test_layouts_go_there_and_back(layout, theirs, ours):
    array = np.arange(np.prod(theirs)).reshape(theirs)
    assert layout.to_ours(array).shape == ours
    assert layout.their_shape(ours) == theirs
    np.testing.assert_array_equal(layout.to_theirs(layout.to_ours(array)), array)


def test_layers_are_stacked_in_the_order_given():
    table = [Entry("a/kernel", "l.{}.weight", MATRIX, range(1, 4, 2)), Entry("b", "bias")]
    params = {"a": {"kernel": np.zeros((2, 2, 3), np.float32)}, "b": np.zeros(4, np.float32)}
    rng = np.random.default_rng(0)
    theirs = {"l.1.weight": rng.normal(size=(3, 2)), "l.3.weight": rng.normal(size=(3, 2)), "bias": rng.normal(size=4)}
    theirs = {name: array.astype(np.float16) for name, array in theirs.items()}
    assert expected_shapes(table, params) == {name: array.shape for name, array in theirs.items()}
    ours = assemble(table, tensors(theirs), params)
    assert ours["a"]["kernel"].dtype == np.float32  # the format asked for, not the file's
    np.testing.assert_array_equal(ours["a"]["kernel"], [theirs["l.1.weight"].T, theirs["l.3.weight"].T])
    back = dict(disassemble(table, ours))
    assert back.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_array_equal(back[name], theirs[name])


def test_a_table_that_does_not_cover_the_model_is_a_mistake():
    with pytest.raises(ValueError, match=r"disagree about \['b', 'c'\]"):
        expected_shapes([Entry("a", "a"), Entry("b", "b")], {"a": np.zeros(1), "c": np.zeros(1)})
