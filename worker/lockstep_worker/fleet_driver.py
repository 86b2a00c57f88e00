"""Carries the fleet's effects to Ray and the server, and brings it their events through one queue."""

import logging
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray

from lockstep_proto import failpoints
from lockstep_proto.v1 import job_pb2, training_pb2
from lockstep_worker.actor import WorkerActor
from lockstep_worker.fleet import Fleet
from lockstep_worker.fleet_effects import (
    AskToLeave,
    Effect,
    ForgetData,
    KillWorker,
    LoadData,
    StartSpare,
    StartWorker,
    Tell,
)
from lockstep_worker.fleet_link import FleetLink, FleetStream
from lockstep_worker.loading import Failure, JobData, Loading
from lockstep_worker.ray_errors import in_words

log = logging.getLogger(__name__)
TICK_S = 0.2
LOOK_S = 1.0  # how often the cluster's resources are looked at
LOST_TICKS = 75  # without an answer from Ray, which is then gone; ticks do not pass while this process stands still
CLOSE_S = 1.0  # for the end of the connection to the server


class RayGoneError(Exception):
    """The Ray cluster is lost, or this machine's part of it."""


class FleetDriver:
    """Runs a Fleet in the calling thread. Ray must have been initialised."""

    def __init__(self, server: str, *, cpus_per_worker: int, data_roots: Sequence[str], grace_s: float) -> None:
        self._server = server
        self._cpus_per_worker = cpus_per_worker
        self._data_roots = tuple(os.path.abspath(root) for root in data_roots)
        self._fleet = Fleet(secrets.token_hex(3), grace_s=grace_s)
        self._events: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._actors: dict[str, Any] = {}  # of workers and spares
        self._turns: dict[str, int] = {}  # of workers
        self._num_turns = 0
        self._loadings: dict[str, Loading] = {}
        self._data: dict[str, JobData] = {}
        self._stream: FleetStream | None = None
        self._ticks_since_look = 0
        self._replaced = False
        self._node_id = ray.get_runtime_context().get_node_id()
        self._looked(ray.nodes())  # type: ignore[no-untyped-call]  # so that the server's first news are right

    def run(self) -> bool:
        """Work until `stop` or until another fleet has taken this one's place, then end the workers.

        Return whether it was `stop`. Raises RayGoneError.
        """
        threading.Thread(target=self._look, name="look", daemon=True).start()
        link = FleetLink(
            self._server,
            lambda stream: self._post(lambda: self._connected(stream)),
            lambda orders: self._post(lambda: self._orders_came(orders)),
            lambda: self._post(self._disconnected),
            self._give_way,
        )
        tick_s = time.monotonic() + TICK_S
        while True:
            try:
                event = self._events.get(timeout=max(tick_s - time.monotonic(), 0.0))
            except queue.Empty:
                event = self._tick
                tick_s = time.monotonic() + TICK_S
            if event is None:
                break
            event()
        link.close(CLOSE_S)
        for actor in self._actors.values():
            ray.kill(actor)
        return not self._replaced

    def stop(self) -> None:
        """Have `run` end. May be called from a signal handler."""
        self._events.put(None)

    def _give_way(self) -> None:
        self._replaced = True
        self.stop()

    def _post(self, event: Callable[[], None]) -> None:
        self._events.put(event)

    def _tick(self) -> None:
        failpoints.hit("fleet.tick")
        self._ticks_since_look += 1
        if self._ticks_since_look > LOST_TICKS:
            raise RayGoneError(f"no answer for {LOST_TICKS * TICK_S:g} s")
        self._carry(self._fleet.tick(time.monotonic()))

    def _connected(self, stream: FleetStream) -> None:
        log.info("connected to the server at %s", self._server)
        failpoints.hit("fleet.connected")
        self._stream = stream
        self._carry(self._fleet.connected(time.monotonic()))

    def _disconnected(self) -> None:
        self._stream = None
        self._fleet.disconnected()

    def _orders_came(self, orders: training_pb2.FleetOrders) -> None:
        failpoints.hit("fleet.orders")
        self._carry(self._fleet.ordered(orders.jobs, time.monotonic()))

    # The cluster

    def _look(self) -> None:
        """Look at the cluster again and again, in a thread of its own: when Ray is gone, a look never returns."""
        while True:
            time.sleep(LOOK_S)
            failpoints.hit("fleet.look")
            try:
                nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
            except Exception as error:
                log.info("no look at the cluster: %s", in_words(error))  # the ticks tell when it is gone
                return
            self._post(lambda nodes=nodes: self._looked(nodes))  # type: ignore[misc]

    def _looked(self, nodes: list[dict[str, Any]]) -> None:
        self._ticks_since_look = 0
        alive = [node for node in nodes if node["Alive"]]
        if self._node_id not in {node["NodeID"] for node in alive}:
            raise RayGoneError("this machine's Ray node is dead")
        slots = sum(int(node["Resources"].get("CPU", 0)) // self._cpus_per_worker for node in alive)
        resources = training_pb2.FleetResources(
            worker_slots=slots, cpus_per_worker=self._cpus_per_worker, nodes=len(alive)
        )
        self._carry(self._fleet.resources_changed(resources, time.monotonic()))

    # Effects

    def _carry(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case LoadData(job_id, spec):
                    self._load(job_id, spec)
                case ForgetData(job_id):
                    self._forget(job_id)
                case StartWorker(job_id, worker_id, spare):
                    self._start(job_id, worker_id, spare)
                case StartSpare(name):
                    self._start_process(name)
                case AskToLeave(worker_id):
                    log.info("a worker is to leave worker=%s", worker_id)
                    failpoints.hit("fleet.leave")
                    if worker_id in self._actors:  # or its process has ended just now
                        self._actors[worker_id].leave.remote(self._turns[worker_id])
                case KillWorker(worker_id):
                    actor = self._actors.pop(worker_id, None)
                    if actor is not None:
                        ray.kill(actor)
                case Tell(message):
                    if self._stream is not None:
                        failpoints.hit("fleet.tell")
                        self._stream.send(message)

    def _load(self, job_id: str, spec: job_pb2.JobSpec) -> None:
        log.info("loading data job=%s", job_id)
        failpoints.hit("fleet.load")
        self._loadings[job_id] = Loading(
            spec,
            server=self._server,
            roots=self._data_roots,
            post=self._post,
            done=lambda found: self._carry(self._data_came(job_id, found)),
        )
        self._loadings[job_id].start()

    def _data_came(self, job_id: str, found: JobData | Failure) -> list[Effect]:
        failpoints.hit("fleet.loaded")
        del self._loadings[job_id]
        if isinstance(found, Failure):
            log.warning("no data: %s job=%s", found.message, job_id)
            return self._fleet.data_failed(
                training_pb2.DataFailed(job_id=job_id, error_type=found.error_type, message=found.message)
            )
        training, validation = found.training, found.validation
        log.info("data loaded: %d rows, %d for validation job=%s", training.num_rows, validation.num_rows, job_id)
        self._data[job_id] = found
        loaded = training_pb2.DataLoaded(
            job_id=job_id,
            num_rows=training.num_rows,
            num_validation_rows=validation.num_rows,
            data_fingerprint=training.fingerprint,
            validation_fingerprint=validation.fingerprint,
        )
        return self._fleet.data_loaded(loaded, time.monotonic())

    def _forget(self, job_id: str) -> None:
        loading = self._loadings.pop(job_id, None)
        if loading is not None:
            loading.cancel()
        self._data.pop(job_id, None)

    def _start(self, job_id: str, worker_id: str, spare: str | None) -> None:
        log.info(
            "starting a worker%s job=%s worker=%s", f" in the process of {spare}" if spare else "", job_id, worker_id
        )
        failpoints.hit("fleet.start")
        if spare is None:
            self._start_process(worker_id)
        else:
            self._actors[worker_id] = self._actors.pop(spare)
        self._num_turns += 1
        number = self._turns[worker_id] = self._num_turns
        actor = self._actors[worker_id]
        ended = actor.run.remote(number, worker_id, job_id, self._server, self._data[job_id]).future()
        joined = actor.join.remote(number).future()
        failpoints.hit("fleet.started")
        joined.add_done_callback(lambda future: self._post(lambda: self._join_ended(worker_id, future)))
        ended.add_done_callback(lambda future: self._post(lambda: self._ended(job_id, worker_id, future)))

    def _start_process(self, name: str) -> None:
        # four calls at once: `live` and `join` wait and `leave` is heard while `run` runs
        options = WorkerActor.options(num_cpus=self._cpus_per_worker, max_restarts=0, max_concurrency=4)
        actor = self._actors[name] = options.remote(self._cpus_per_worker)
        actor.live.remote().future().add_done_callback(lambda _: self._post(lambda: self._process_ended(actor)))

    def _process_ended(self, actor: Any) -> None:
        for name in [name for name, other in self._actors.items() if other is actor]:
            del self._actors[name]
            self._carry(self._fleet.spare_ended(name))

    def _join_ended(self, worker_id: str, future: Any) -> None:
        if future.exception() is None:
            self._fleet.worker_joined(worker_id)

    def _ended(self, job_id: str, worker_id: str, future: Any) -> None:
        failpoints.hit("fleet.ended")
        error = future.exception()
        reason, reusable = future.result() if error is None else (in_words(error), False)
        reusable &= worker_id in self._actors
        log.info("a worker ended: %s job=%s worker=%s", reason, job_id, worker_id)
        self._turns.pop(worker_id, None)
        self._carry(
            self._fleet.worker_ended(worker_id, None if error is None else reason, time.monotonic(), reusable=reusable)
        )
