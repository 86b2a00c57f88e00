from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep_proto.v1 import job_pb2, service_pb2, training_pb2
from lockstep_worker.fleet import (
    FIRST_RETRY_S,
    HEALTHY_S,
    JOIN_S,
    LONGEST_RETRY_S,
    ORDERLY_S,
    OVER_S,
    Fleet,
)
from lockstep_worker.fleet_effects import (
    AskToLeave,
    ForgetData,
    KillWorker,
    LoadData,
    StartSpare,
    StartWorker,
    Tell,
)
from lockstep_worker.spares import SPARE_S

SPEC = job_pb2.JobSpec(name="n")
GRACE_S = 3.0


def order(job_id, num_workers, given_up=()):
    return training_pb2.JobOrder(job_id=job_id, spec=SPEC, num_workers=num_workers, given_up=given_up)


def loaded_message(job_id):
    return training_pb2.FleetMessage(
        data_loaded=training_pb2.DataLoaded(job_id=job_id, num_rows=100, num_validation_rows=10)
    )


class Driven:
    """A fleet, and what a driver would know of it."""

    def __init__(self):
        self.fleet = Fleet("f", grace_s=GRACE_S)
        self.now = 1000.0
        self.slots = 0
        self.running = {}  # worker id -> job id
        self.leaving = set()
        self.spares = set()
        self.told = []
        self.data = set()

    def carry(self, effects):
        for effect in effects:
            match effect:
                case LoadData(job_id, spec):
                    assert spec == SPEC
                    assert job_id not in self.data
                    self.data.add(job_id)
                case ForgetData(job_id):
                    self.data.remove(job_id)
                    assert self.count(job_id) == 0
                case StartWorker(job_id, worker_id, spare):
                    assert worker_id not in self.running
                    self.running[worker_id] = job_id
                    if spare is not None:
                        self.spares.remove(spare)
                case StartSpare(name):
                    self.spares.add(name)
                case AskToLeave(worker_id):
                    assert worker_id in self.running
                    self.leaving.add(worker_id)
                case KillWorker(worker_id):
                    self.running.pop(worker_id, None)
                    self.leaving.discard(worker_id)
                    self.spares.discard(worker_id)
                case Tell(message):
                    self.told.append(message)
        assert not self.spares or len(self.spares) + len(self.running) <= self.slots
        return effects

    def order(self, **jobs):
        return self.carry(self.fleet.ordered([order(*item) for item in jobs.items()], self.now))

    def give_up(self, job_id, num_workers, *worker_ids):
        return self.carry(self.fleet.ordered([order(job_id, num_workers, worker_ids)], self.now))

    def loaded(self, job_id):
        return self.carry(self.fleet.data_loaded(loaded_message(job_id).data_loaded, self.now))

    def ended(self, worker_id, error=None):
        return self.carry(self.fleet.worker_ended(worker_id, error, self.now))

    def over(self, worker_id):
        """The work of a worker is over, and its process is there for more."""
        effects = self.fleet.worker_ended(worker_id, None, self.now, reusable=True)
        self.running.pop(worker_id, None)
        self.leaving.discard(worker_id)
        if KillWorker(worker_id) not in effects:
            self.spares.add(worker_id)
        return self.carry(effects)

    def spare_ended(self, name):
        return self.carry(self.fleet.spare_ended(name))

    def resize(self, num_slots):
        self.slots = num_slots
        resources = training_pb2.FleetResources(worker_slots=num_slots, cpus_per_worker=1, nodes=1)
        return self.carry(self.fleet.resources_changed(resources, self.now))

    def wait(self, seconds):
        self.now += seconds
        return self.carry(self.fleet.tick(self.now))

    def count(self, job_id):
        """Workers of a job that are to stay."""
        return sum(job == job_id and worker not in self.leaving for worker, job in self.running.items())

    def take_told(self):
        told, self.told = self.told, []
        return told


@pytest.fixture
def driven():
    return Driven()


@pytest.fixture
def running(driven):
    """Job a runs with three workers, for which the cluster has just room."""
    driven.order(a=3)
    driven.loaded("a")
    driven.wait(HEALTHY_S + 1)
    driven.resize(3)
    driven.take_told()
    return driven


# Data


def test_a_jobs_data_are_loaded_when_it_first_appears(driven):
    assert driven.order(a=2) == [LoadData("a", SPEC)]
    assert driven.order(a=3) == []


def test_workers_start_all_at_once_when_the_data_are_there(driven):
    driven.order(a=3)
    driven.wait(100)
    assert driven.count("a") == 0
    effects = driven.loaded("a")
    assert effects == [Tell(loaded_message("a")), *[StartWorker("a", f"f-{i}") for i in (1, 2, 3)]]


def test_the_newest_number_of_workers_counts_when_the_data_are_there(driven):
    driven.order(a=3)
    driven.order(a=1)
    driven.loaded("a")
    assert driven.count("a") == 1


def test_data_that_cannot_be_had_are_told_and_no_worker_starts(driven):
    driven.order(a=2)
    failed = training_pb2.DataFailed(
        job_id="a", error_type=service_pb2.ERROR_TYPE_DATA_INVALID, message="d.csv: there are no rows"
    )
    assert driven.carry(driven.fleet.data_failed(failed)) == [Tell(training_pb2.FleetMessage(data_failed=failed))]
    driven.wait(100)
    assert driven.order(a=2) == []
    assert driven.count("a") == 0


def test_news_of_data_of_a_job_that_has_vanished_say_nothing(driven):
    driven.order(a=1)
    driven.order()
    assert driven.loaded("a") == []
    assert driven.fleet.data_failed(training_pb2.DataFailed(job_id="a")) == []


def test_a_job_that_comes_back_is_loaded_afresh(running):
    running.order()
    running.wait(OVER_S)
    assert running.order(a=2) == [LoadData("a", SPEC)]
    running.loaded("a")
    assert running.count("a") == 2


# Numbers of workers


def test_more_workers_are_started_when_more_are_wanted(running):
    assert running.order(a=5) == [StartWorker("a", "f-4"), StartWorker("a", "f-5")]


def test_the_same_orders_again_change_nothing(running):
    assert running.order(a=3) == []
    assert running.wait(1) == []


def test_surplus_workers_are_asked_to_leave_the_newest_first(running):
    assert running.order(a=1) == [AskToLeave("f-2"), AskToLeave("f-3")]
    assert running.order(a=1) == []


def test_a_worker_that_left_frees_its_cpus_and_nobody_is_told(running):
    running.order(a=2)
    assert running.ended("f-3") == [KillWorker("f-3")]
    assert running.wait(100) == []


def test_a_worker_that_does_not_leave_in_time_is_killed(running):
    running.order(a=2)
    assert running.wait(GRACE_S - 0.1) == []
    assert running.wait(0.2) == [KillWorker("f-3")]
    assert running.ended("f-3", "it was killed") == []


def test_a_leaving_worker_is_no_longer_counted(driven):
    driven.resize(4)
    driven.order(a=3)
    driven.loaded("a")
    driven.order(a=2)
    (leaving,) = driven.leaving
    assert driven.order(a=3) == [StartWorker("a", "f-8", "f-1")]
    assert driven.leaving == {leaving}


def test_in_a_full_cluster_the_next_worker_waits_for_the_process_of_one_that_leaves(running):
    running.order(a=2)
    assert running.order(a=3) == []
    assert running.over("f-3") == [StartWorker("a", "f-4", "f-3")]


@pytest.mark.parametrize("leave", [lambda fleet: fleet.ended("f-3", "it crashed"), lambda fleet: fleet.wait(GRACE_S)])
def test_it_gets_one_of_its_own_if_that_one_is_of_no_use(running, leave):
    running.order(a=2)
    running.order(a=3)
    assert leave(running) == [KillWorker("f-3"), StartWorker("a", "f-4")]


def test_workers_that_leave_one_job_are_there_for_another_that_the_same_orders_name_first(driven):
    driven.resize(2)
    driven.order(b=0, a=2)
    driven.loaded("a")
    driven.loaded("b")
    assert driven.order(b=1, a=1) == [AskToLeave("f-4")]
    assert driven.over("f-4") == [StartWorker("b", "f-5", "f-4")]


def test_jobs_are_kept_apart(running):
    running.order(a=2, b=1)
    running.loaded("b")
    running.ended("f-3")
    assert (running.count("a"), running.count("b")) == (2, 1)
    running.order(b=1)
    assert (running.count("a"), running.count("b")) == (0, 1)


def test_a_job_that_vanishes_is_forgotten_and_its_workers_are_to_end(running):
    running.order(a=2)  # one is about to leave
    assert running.order() == [AskToLeave("f-1"), AskToLeave("f-2"), ForgetData("a")]
    assert running.ended("f-1") == [KillWorker("f-1")]
    assert running.wait(OVER_S) == [KillWorker("f-2")]
    assert running.wait(GRACE_S) == [KillWorker("f-3")]
    assert running.wait(100) == []


# Deaths


def test_a_worker_that_dies_after_a_while_is_told_and_replaced_at_once(running):
    exited = training_pb2.WorkerExited(job_id="a", worker_id="f-2", message="its node has died")
    assert running.ended("f-2", "its node has died") == [
        KillWorker("f-2"),
        Tell(training_pb2.FleetMessage(worker_exited=exited)),
        StartWorker("a", "f-4"),
    ]


def test_a_worker_that_dies_young_is_replaced_after_a_wait_that_doubles_up_to_a_limit(driven):
    driven.order(a=1)
    driven.loaded("a")
    wait_s, waits = FIRST_RETRY_S, []
    for _ in range(12):
        (worker_id,) = driven.running
        driven.ended(worker_id, "it crashed")
        driven.wait(wait_s - 0.01)
        assert driven.count("a") == 0
        driven.wait(0.02)
        assert driven.count("a") == 1
        waits.append(wait_s)
        wait_s = min(2 * wait_s, LONGEST_RETRY_S)
    assert waits[:3] == [0.5, 1.0, 2.0]
    assert waits[-1] == LONGEST_RETRY_S
    assert len(driven.take_told()) == 1 + 12


def test_workers_that_start_and_die_together_count_as_one_death(driven):
    driven.order(a=4)
    driven.loaded("a")
    for worker_id in list(driven.running):
        driven.ended(worker_id, "it crashed")
    driven.wait(FIRST_RETRY_S)
    assert driven.count("a") == 4


def test_a_worker_that_lived_ends_the_growth_of_the_wait(driven):
    driven.order(a=1)
    driven.loaded("a")
    for _ in range(5):
        (worker_id,) = driven.running
        driven.ended(worker_id, "it crashed")
        driven.wait(LONGEST_RETRY_S)
    driven.wait(HEALTHY_S + 1)
    (worker_id,) = driven.running
    driven.ended(worker_id, "its node has died")
    assert driven.count("a") == 1


def test_a_worker_that_the_server_sent_away_is_replaced_only_if_it_is_still_wanted_a_little_later(running):
    assert running.ended("f-1") == [KillWorker("f-1")]
    assert running.take_told() == []
    assert running.wait(ORDERLY_S - 0.1) == []
    assert running.wait(0.2) == [StartWorker("a", "f-4")]


def test_a_worker_whose_job_is_over_is_not_replaced(running):
    for worker_id in ("f-1", "f-2", "f-3"):
        running.ended(worker_id)
    assert running.order() == [ForgetData("a")]
    assert running.wait(100) == []


# Workers that hang


def test_a_worker_that_the_server_gave_up_is_killed_and_replaced(running):
    assert running.give_up("a", 3, "f-2") == [KillWorker("f-2"), StartWorker("a", "f-4")]
    assert running.ended("f-2", "it was killed") == []


def test_a_worker_is_given_up_once_however_often_the_server_says_so(running):
    running.give_up("a", 3, "f-2")
    assert running.give_up("a", 3, "f-2") == []
    assert running.give_up("a", 3, "f-2", "f-4") == [KillWorker("f-4")]
    assert running.wait(FIRST_RETRY_S) == [StartWorker("a", "f-5")]


def test_a_worker_that_has_ended_or_that_another_fleet_started_is_not_given_up_again(running):
    running.ended("f-2", "it crashed")
    assert running.give_up("a", 3, "f-2", "g-1") == []
    assert running.count("a") == 3


def test_a_worker_that_is_given_up_while_it_leaves_is_killed_at_once_and_not_replaced(running):
    running.order(a=2)
    assert running.give_up("a", 2, "f-3") == [KillWorker("f-3")]
    assert running.wait(100) == []


def test_one_that_is_given_up_while_it_leaves_is_no_death_that_puts_off_another_start(driven):
    driven.order(a=2)
    driven.loaded("a")
    driven.order(a=1)
    assert driven.give_up("a", 2, "f-2") == [KillWorker("f-2"), StartWorker("a", "f-3")]


def test_workers_that_are_given_up_young_are_replaced_more_and_more_slowly(driven):
    driven.order(a=1)
    driven.loaded("a")
    for wait_s in (0.5, 1.0, 2.0):
        (worker_id,) = driven.running
        driven.give_up("a", 1, worker_id)
        driven.wait(wait_s - 0.01)
        assert driven.count("a") == 0
        driven.wait(0.02)
        assert driven.count("a") == 1


def unheard(worker_id):
    message = f"it did not reach the server within {JOIN_S:g} s"
    exited = training_pb2.WorkerExited(job_id="a", worker_id=worker_id, message=message)
    return Tell(training_pb2.FleetMessage(worker_exited=exited))


@pytest.fixture
def starting(driven):
    driven.carry(driven.fleet.connected(driven.now))
    driven.order(a=2)
    driven.loaded("a")
    driven.take_told()
    return driven


def test_a_worker_that_does_not_reach_the_server_in_time_is_told_and_replaced(starting):
    starting.fleet.worker_joined("f-1")
    assert starting.wait(JOIN_S) == []
    assert starting.wait(0.1) == [KillWorker("f-2"), unheard("f-2"), StartWorker("a", "f-3")]
    starting.fleet.worker_joined("f-3")
    assert starting.wait(1000) == []


def test_time_without_a_server_does_not_count(starting):
    starting.fleet.disconnected()
    assert starting.wait(1000) == []
    starting.carry(starting.fleet.connected(starting.now))
    assert starting.wait(JOIN_S) == []
    assert KillWorker("f-1") in starting.wait(0.1)


def test_a_worker_that_leaves_need_not_join(starting):
    starting.fleet.worker_joined("f-1")
    starting.now += JOIN_S
    starting.order(a=1)
    assert starting.wait(GRACE_S - 0.1) == []


def test_news_of_a_worker_that_has_ended_say_nothing(starting):
    starting.ended("f-1", "it crashed")
    starting.fleet.worker_joined("f-1")
    assert starting.count("a") == 1


def test_an_unknown_worker_that_ends_says_nothing(running):
    assert running.ended("f-99", "it crashed") == []


# The server


def test_resources_are_told_when_they_change(driven):
    def changed(num_nodes):
        resources = training_pb2.FleetResources(cpus_per_worker=1, nodes=num_nodes)
        return driven.fleet.resources_changed(resources, driven.now)

    two = training_pb2.FleetResources(cpus_per_worker=1, nodes=2)
    assert len(changed(1)) == 1
    assert changed(1) == []
    assert changed(2) == [Tell(training_pb2.FleetMessage(resources=two))]


def test_a_server_that_was_dialled_again_is_told_resources_first_and_then_all_live_data(running):
    resources = training_pb2.FleetResources(worker_slots=2, cpus_per_worker=1, nodes=1)
    running.resize(2)
    running.order(a=3, b=1, c=1, d=1)
    running.loaded("b")
    failed = training_pb2.DataFailed(job_id="c", message="no such file")
    running.carry(running.fleet.data_failed(failed))
    running.order(a=3, c=1, d=1)  # b is over, d is still loading
    assert running.fleet.connected(running.now) == [
        Tell(training_pb2.FleetMessage(resources=resources)),
        Tell(loaded_message("a")),
        Tell(training_pb2.FleetMessage(data_failed=failed)),
    ]


def test_the_order_of_a_server_that_restarted_finds_its_job_loaded_and_running(running):
    assert running.order(a=3) == []
    assert running.count("a") == 3


# Spares


def worker_of(effects):
    (found,) = (effect for effect in effects if isinstance(effect, StartWorker))
    return found


@pytest.fixture
def idle(driven):
    """A cluster with room for two, whose processes f-1 and f-2 wait for a job."""
    driven.carry(driven.fleet.connected(driven.now))
    driven.resize(2)
    driven.take_told()
    return driven


def test_a_process_is_started_ahead_for_every_slot(driven):
    assert driven.resize(2)[1:] == [StartSpare("f-1"), StartSpare("f-2")]
    assert driven.resize(3)[1:] == [StartSpare("f-3")]


def test_no_process_is_started_ahead_where_workers_are(running):
    assert running.resize(4)[1:] == [StartSpare("f-4")]


def test_workers_start_in_the_processes_of_spares_under_ids_of_their_own(idle):
    idle.order(a=3)
    started = [StartWorker("a", "f-3", "f-2"), StartWorker("a", "f-4", "f-1"), StartWorker("a", "f-5")]
    assert idle.loaded("a")[1:] == started


def test_the_process_of_a_worker_whose_job_is_over_serves_the_next_job(running):
    assert running.over("f-2") == []
    running.order(b=1)
    assert worker_of(running.loaded("b")) == StartWorker("b", "f-4", "f-2")


def test_one_that_is_asked_to_leave_when_its_job_vanishes_does_so_too(running):
    running.order(b=1)
    running.over("f-2")
    assert worker_of(running.loaded("b")).spare == "f-2"
    assert running.wait(OVER_S) == [KillWorker("f-1"), KillWorker("f-3")]


def test_a_worker_that_failed_leaves_no_spare(running):
    running.ended("f-2", "it cannot compute")
    assert running.spares == set()


def test_a_job_that_lost_a_worker_in_order_gets_its_process_again_a_little_later(running):
    running.over("f-2")
    assert running.wait(ORDERLY_S) == [StartWorker("a", "f-4", "f-2")]


def test_the_process_of_a_worker_that_the_server_has_given_up_is_ended_even_if_it_ended_in_order(running):
    running.over("f-2")
    assert KillWorker("f-2") in running.give_up("a", 3, "f-2")
    assert running.spares == set()


def test_a_spare_whose_process_died_is_not_used(idle):
    assert idle.spare_ended("f-2") == [KillWorker("f-2")]
    idle.order(a=2)
    assert idle.loaded("a")[1:] == [StartWorker("a", "f-3", "f-1"), StartWorker("a", "f-4")]


def test_the_end_of_a_process_that_is_no_spare_says_nothing(running):
    assert running.spare_ended("f-1") == []
    assert running.count("a") == 3


def test_spares_that_nobody_needs_end_after_a_while(idle):
    assert idle.wait(SPARE_S - 1) == []
    assert idle.wait(1) == [KillWorker("f-1"), KillWorker("f-2")]
    idle.order(a=1)
    assert worker_of(idle.loaded("a")).spare is None


def test_each_job_renews_the_time_of_a_spare(idle):
    idle.order(a=1)
    idle.loaded("a")
    idle.fleet.worker_joined("f-3")
    idle.wait(SPARE_S - 1)
    idle.over("f-3")
    idle.order()
    assert idle.wait(1) == [KillWorker("f-1")]
    assert idle.wait(SPARE_S - 1) == [KillWorker("f-3")]


def test_spares_give_way_when_the_cluster_gets_smaller(idle):
    assert idle.resize(1)[1:] == [KillWorker("f-2")]
    assert idle.resize(0)[1:] == [KillWorker("f-1")]


def test_no_spare_is_kept_where_there_is_no_room_for_it(running):
    running.resize(2)
    assert running.over("f-3") == [KillWorker("f-3")]


# Whatever happens


JOBS = st.sampled_from(["a", "b", "c"])
EVENTS = st.one_of(
    st.tuples(st.just("order"), st.dictionaries(JOBS, st.integers(0, 4))),
    st.tuples(st.just("loaded"), JOBS),
    st.tuples(st.just("ended"), st.tuples(st.integers(0, 12), st.sampled_from([None, "died"]))),
    st.tuples(st.just("over"), st.integers(0, 12)),
    st.tuples(st.just("spare ended"), st.integers(0, 12)),
    st.tuples(st.just("resize"), st.integers(0, 8)),
    st.tuples(st.just("given up"), st.integers(0, 12)),
    st.tuples(st.just("server"), st.booleans()),
    st.tuples(st.just("wait"), st.floats(0, 100)),
)


def happen(driven, kind, what):
    if kind == "order":
        driven.order(**what)
        driven.wanted = what
        driven.has_data &= what.keys()
    elif kind == "loaded":
        if what in driven.wanted:
            driven.has_data.add(what)
        driven.loaded(what)
    elif kind == "wait":
        driven.wait(what)
    elif kind == "resize":
        driven.resize(what)
    elif kind == "over" and driven.running:
        driven.over(sorted(driven.running)[what % len(driven.running)])
    elif kind == "spare ended" and driven.spares:
        driven.spare_ended(sorted(driven.spares)[what % len(driven.spares)])
    elif kind == "server" and what:
        driven.carry(driven.fleet.connected(driven.now))
    elif kind == "server":
        driven.fleet.disconnected()
    elif kind == "given up" and driven.running:
        worker_id = sorted(driven.running)[what % len(driven.running)]
        job_id = driven.running[worker_id]
        orders = [order(job, n, [worker_id] if job == job_id else []) for job, n in driven.wanted.items()]
        driven.carry(driven.fleet.ordered(orders, driven.now))
    elif kind == "ended" and driven.running:
        worker_id = sorted(driven.running)[what[0] % len(driven.running)]
        driven.ended(worker_id, what[1])


@settings(max_examples=300)
@given(st.lists(EVENTS, max_size=40))
def test_after_any_events_each_job_comes_to_have_the_workers_it_is_to_have_and_no_other(events):
    driven = Driven()
    driven.wanted, driven.has_data = {}, set()
    for kind, what in events:
        happen(driven, kind, what)
        surplus = {job_id: driven.count(job_id) - driven.wanted.get(job_id, 0) for job_id in "abc"}
        assert max(surplus.values()) <= 0
    for worker_id in driven.running:
        driven.fleet.worker_joined(worker_id)
    driven.wait(LONGEST_RETRY_S)  # waits of the dead and of those that leave are over
    expected = Counter({job_id: n for job_id, n in driven.wanted.items() if job_id in driven.has_data})
    assert Counter(driven.running.values()) == expected
    assert driven.data == driven.wanted.keys()
