"""Workers that are ahead wait where too much cannot be summed: nothing but the memory shows it."""

import numpy as np
import pytest

from lockstep_server import chunks
from lockstep_server.crew import Crew, WorkerView
from lockstep_server.effects import Listen
from lockstep_server.holding import Holding
from tests.server.test_training import cluster

CHUNK_BYTES = 16


@pytest.fixture
def crew() -> Crew:
    made = Crew(lease_s=2.0, now=0.0)
    for worker_id, num_due in (("ahead", 3), ("behind", 5), ("done", 0), ("as far behind", 5)):
        made[worker_id] = WorkerView(worker_id, 1, 0.0, num_due=num_due, late_s=4.0)
    return made


def test_only_those_ahead_are_held_and_only_above_the_bound(crew: Crew) -> None:
    holding = Holding(crew, 100)
    assert holding.look(100, 1.0) == []
    assert holding.look(101, 1.0) == [Listen("ahead", False)]
    assert holding.look(102, 1.5) == []
    assert holding.look(100, 2.0) == [Listen("ahead", True)]
    assert holding.look(99, 2.5) == []


def test_who_is_held_is_listened_to_again_when_the_others_have_come_so_far(crew: Crew) -> None:
    holding = Holding(crew, 100)
    holding.look(101, 1.0)
    crew["behind"].num_due = 3
    assert holding.look(101, 2.0) == [Listen("behind", False)]
    crew["as far behind"].num_due = 3
    assert holding.look(101, 2.0) == [Listen("ahead", True), Listen("behind", True)]


def test_a_worker_that_was_lost_holds_nobody_up(crew: Crew) -> None:
    holding = Holding(crew, 100)
    holding.look(101, 1.0)
    del crew["behind"], crew["as far behind"]
    assert holding.look(101, 2.0) == [Listen("ahead", True)]


def test_silence_says_nothing_of_who_is_not_listened_to(crew: Crew) -> None:
    holding = Holding(crew, 100)
    holding.look(101, 1.0)
    for now in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0):
        silent = crew.silent(now)
    assert set(silent) == set(crew) - {"ahead"}
    assert not crew["ahead"].is_late(5.0)
    assert crew["behind"].is_late(5.0)
    holding.look(0, 5.0)
    assert (crew["ahead"].heard_s, crew["ahead"].late_s) == (4.0, 8.0)


@pytest.mark.parametrize("shards", [3, 8, 13])
def test_the_bound_holds_and_the_bits_are_the_same(shards: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", CHUNK_BYTES)

    def train(most_bytes: int) -> tuple[bytes, int, int]:
        """Return the parameters, the most bytes that waited, and how often a worker was found held."""
        made = cluster(changes={"shards": shards, "batch_size": 2 * shards}, max_unsummed_bytes=most_bytes)
        for i in range(3):
            made.join(f"w{i}")
        highest = num_held = 0
        while made.outcome is None:
            made.turn()
            current = made.training._round
            highest = max(highest, current.reduction.num_waiting_bytes if current is not None else 0)
            num_held += len(made.held)
        return np.asarray(made.parameters).tobytes(), highest, num_held

    expected, free, never = train(1 << 30)
    bits, bounded, times = train(CHUNK_BYTES)
    assert bits == expected
    assert never == 0
    assert times > 0
    assert bounded < free
