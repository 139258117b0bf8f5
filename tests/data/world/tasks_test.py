"""Samples of the tasks: functions of (task, seed, index) that never change, held out exactly where requested."""

import hashlib
import json

import pytest

from seed_jax.data.world import TASKS, Scene, make_sample


@pytest.mark.parametrize("task", TASKS)
def test_samples_are_reproducible_and_differ_by_index_and_seed(task):
    assert make_sample(task, 1, 5) == make_sample(task, 1, 5)
    samples = [make_sample(task, 1, 5), make_sample(task, 1, 6), make_sample(task, 2, 5), make_sample(task, 1, 5, True)]
    assert len({repr(sample) for sample in samples}) == 4
    for index in range(50):
        shown = [item for item in make_sample(task, 0, index).items if isinstance(item, Scene)]
        assert shown
        assert not any(scene.held_out for scene in shown)
        assert all(item.held_out for item in make_sample(task, 0, index, True).items if isinstance(item, Scene))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("num_objects", [1, 2, 3])
def test_the_number_of_objects_can_be_given(task, num_objects):
    for index in range(20):
        items = make_sample(task, 0, index, num_objects=num_objects).items
        first = next(item for item in items if isinstance(item, Scene))
        assert len(first.objects) == num_objects


def plain(item):
    """Return an item as JSON data, positions to a thousandth."""
    if isinstance(item, str):
        return item
    objects = [[*obj.combination, round(obj.x, 3), round(obj.y, 3)] for obj in item.objects]
    return [objects, item.arrangement, item.background]


@pytest.mark.parametrize(
    ("task", "digest"),
    [
        ("captions", "724b76d1f6778db1"),
        ("questions", "2312effc90fbd9a5"),
        ("edits", "d88175944ab3275f"),
        ("differences", "591c624976fcf425"),
        ("stories", "c7d7b6a7fca25cf2"),
    ],
)
def test_samples_are_those_of_published_results(task, digest):
    """Results are comparable only while the scene generator, held-out combinations and question mix stay the same."""
    samples = [make_sample(task, 42, index, held_out) for index in range(100) for held_out in (False, True)]
    content = json.dumps([[plain(item) for item in sample.items] + [sample.meta.get("kinds")] for sample in samples])
    assert hashlib.sha256(content.encode()).hexdigest()[:16] == digest
