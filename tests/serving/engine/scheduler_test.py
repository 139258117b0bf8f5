"""Slots in the order of arrival, pairs for guided requests, nothing lost."""

import numpy as np

from seed_jax.serving.engine.scheduler import Phase, Row, ScheduledRequest, Scheduler


class Wanted(ScheduledRequest):
    """A request with one row, or two for guidance."""

    def __init__(self, name: str, *lengths: int):
        super().__init__([Row([7] * length) for length in lengths or (1,)])
        self.name = name

    def __repr__(self) -> str:
        return self.name


def prefill(scheduler: Scheduler, chunk: int) -> list[str]:
    """Prefill everything and return whose chunks came in which order."""
    order = []
    while (following := scheduler.next_prefill()) is not None:
        request, row = following
        row.prefilled += min(chunk, row.missing)
        order.append(request.name)
    return order


def test_first_come_first_served():
    scheduler = Scheduler(2)
    requests = [Wanted(name) for name in "abcd"]
    for request in requests:
        scheduler.add(request)
    assert scheduler.admit() == requests[:2]
    assert scheduler.admit() == []
    scheduler.finish(requests[1])
    assert scheduler.admit() == [requests[2]]
    assert requests[2].rows[0].slot == 1
    scheduler.finish(requests[3])  # cancelled while it waits
    scheduler.finish(requests[0])
    scheduler.finish(requests[2])
    assert scheduler.is_idle
    assert {request.phase for request in requests} == {Phase.FINISHED}


def test_a_prompt_is_prefilled_up_to_its_last_token_and_prompts_one_after_the_other():
    scheduler = Scheduler(4)
    for request in (Wanted("a", 9), Wanted("b", 1), Wanted("c", 5)):
        scheduler.add(request)
    scheduler.admit()
    assert prefill(scheduler, 4) == ["a", "a", "c"]
    assert sorted(request.name for _, request in scheduler.decoding()) == ["a", "b", "c"]
    assert all(request.rows[0].prefilled == len(request.rows[0].tokens) - 1 for request in scheduler.running)


def test_a_guided_request_takes_two_neighbours_and_waits_for_them_before_later_ones():
    scheduler = Scheduler(4)
    singles = [Wanted(name) for name in "abc"]
    for request in singles:
        scheduler.add(request)
    scheduler.admit()
    # The first pair is filled before the second is begun.
    assert sorted(request.rows[0].slot for request in singles) == [0, 1, 2]
    guided, late = Wanted("guided", 3, 1), Wanted("late")
    scheduler.add(guided)
    scheduler.add(late)
    assert scheduler.admit() == []
    scheduler.finish(scheduler.slots[2])
    assert scheduler.admit() == [guided]
    assert [row.slot for row in guided.rows] == [2, 3]
    prefill(scheduler, 8)
    assert [request for _, request in scheduler.decoding()].count(guided) == 1
    scheduler.finish(guided)
    assert scheduler.admit() == [late]


def test_no_slot_is_lost_or_given_twice():
    draw, scheduler, running, arrived = np.random.default_rng(0), Scheduler(8), [], 0
    admitted_in_order = []
    for _ in range(2000):
        if draw.random() < 0.5:
            scheduler.add(Wanted(str(arrived), *([3] * draw.integers(1, 3))))
            arrived += 1
        running += scheduler.admit()
        admitted_in_order += [int(request.name) for request in running if request.phase is Phase.PREFILL]
        prefill(scheduler, 64)
        if running and draw.random() < 0.5:
            scheduler.finish(running.pop(draw.integers(len(running))))
        slots = [row.slot for request in running for row in request.rows]
        assert len(slots) == len(set(slots))
        assert {slot for slot, request in enumerate(scheduler.slots) if request is not None} == set(slots)
    assert admitted_in_order == sorted(admitted_in_order)
    assert len(admitted_in_order) > 500
