"""`lockstep-fleet`: the Ray driver that starts and stops workers for the server's jobs."""

import argparse
import os
import queue
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray

from lockstep_proto.v1 import job_pb2, service_pb2, training_pb2
from lockstep_worker import loading
from lockstep_worker.actor import WorkerActor
from lockstep_worker.fleet import AskToLeave, Effect, Fleet, ForgetData, KillWorker, LoadData, StartWorker, Tell
from lockstep_worker.fleet_link import FleetLink

LOOK_S = 1.0  # how often the cluster's resources are looked at
OBJECT_STORE_BYTES = 512 * 1024 * 1024  # of a local cluster, until more is asked for
# Set before Ray starts, so that its workers begin with them: one BLAS thread, and a malloc that keeps its memory.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "67108864",
}


class FleetDriver:
    """Carries the fleet's effects to Ray and the server, and brings it their events through one queue."""

    def __init__(self, server: str, *, cpus_per_worker: int, data_roots: Sequence[str]) -> None:
        self._server = server
        self._cpus_per_worker = cpus_per_worker
        self._data_roots = tuple(os.path.abspath(root) for root in data_roots)
        self._fleet = Fleet(secrets.token_hex(3))
        self._events: queue.SimpleQueue[Callable[[], list[Effect]] | None] = queue.SimpleQueue()
        self.problem = ""
        self._actors: dict[str, Any] = {}
        self._shards: dict[str, tuple[list[Any], list[Any]]] = {}
        self._look()  # so that the first thing the server hears is right
        self._link = FleetLink(
            server,
            connected=lambda: self._put(self._fleet.connected),
            ordered=self._orders,
            replaced=lambda: self.stop("another fleet has attached to the server"),
        )

    def run(self) -> None:
        """Work until `stop`. Raises what Ray raises when it is gone."""
        look_s = time.monotonic() + LOOK_S
        while True:
            try:
                event = self._events.get(timeout=max(look_s - time.monotonic(), 0.0))
            except queue.Empty:
                look_s = time.monotonic() + LOOK_S
                self._carry(self._look())
                self._carry(self._fleet.tick(time.monotonic()))
                continue
            if event is None:
                break
            self._carry(event())
        self._link.close()
        for actor in self._actors.values():
            ray.kill(actor)

    def stop(self, problem: str = "") -> None:
        """Have `run` end, in order or because of a problem."""
        self.problem = problem
        self._events.put(None)

    def _put(self, event: Callable[[], list[Effect]]) -> None:
        self._events.put(event)

    def _orders(self, orders: training_pb2.FleetOrders) -> None:
        self._put(lambda: self._fleet.ordered(orders.jobs, time.monotonic()))

    def _look(self) -> list[Effect]:
        known: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        nodes = [node for node in known if node["Alive"]]
        slots = sum(int(node["Resources"].get("CPU", 0)) // self._cpus_per_worker for node in nodes)
        return self._fleet.resources_changed(
            training_pb2.FleetResources(worker_slots=slots, cpus_per_worker=self._cpus_per_worker, nodes=len(nodes))
        )

    def _carry(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case LoadData(job_id, spec):
                    threading.Thread(target=self._load, args=(job_id, spec), daemon=True).start()
                case ForgetData(job_id):
                    self._shards.pop(job_id, None)
                case StartWorker(job_id, worker_id):
                    self._start(job_id, worker_id)
                case AskToLeave(worker_id):
                    self._actors[worker_id].leave.remote()
                case KillWorker(worker_id):
                    actor = self._actors.pop(worker_id, None)
                    if actor is not None:
                        ray.kill(actor)
                case Tell(message):
                    self._link.send(message)

    def _start(self, job_id: str, worker_id: str) -> None:
        # two calls at once, so that `leave` is heard while `run` runs
        options = WorkerActor.options(num_cpus=self._cpus_per_worker, max_restarts=0, max_concurrency=2)
        actor = self._actors[worker_id] = options.remote(worker_id, self._cpus_per_worker)
        training, validation = self._shards[job_id]
        ended = actor.run.remote(job_id, self._server, training, validation).future()
        ended.add_done_callback(lambda future: self._put(lambda: self._ended(worker_id, future.exception())))

    def _ended(self, worker_id: str, error: BaseException | None) -> list[Effect]:
        reason = str(error).strip().splitlines()[0] if error is not None else None
        return self._fleet.worker_ended(worker_id, reason, time.monotonic())

    def _load(self, job_id: str, spec: job_pb2.JobSpec) -> None:
        """Load a job's data, in a thread of its own."""
        try:
            shards, num_rows = self._load_one(spec, training=True)
            validation: list[Any] = []
            num_validation_rows = 0
            if spec.HasField("validation"):
                validation, num_validation_rows = self._load_one(spec, training=False)
        except _FailedError as failed:
            message = training_pb2.DataFailed(job_id=job_id, error_type=failed.error_type, message=str(failed))
            self._put(lambda: self._fleet.data_failed(message))
            return

        def loaded() -> list[Effect]:
            self._shards[job_id] = (shards, validation)
            return self._fleet.data_loaded(job_id, num_rows, num_validation_rows, time.monotonic())

        self._put(loaded)

    def _load_one(self, spec: job_pb2.JobSpec, *, training: bool) -> tuple[list[Any], int]:
        place = loading.Place(spec.SerializeToString(), training, self._server, self._data_roots)
        outline = _value(loading.start_outline(place))
        shards, failures = loading.start_loading(place, spec.shards, can_be_entered=outline.can_be_entered)
        for failure in failures:
            _value(failure)
        return shards, outline.num_rows


class _FailedError(Exception):
    def __init__(self, message: str, error_type: service_pb2.ErrorType.ValueType) -> None:
        super().__init__(message)
        self.error_type = error_type


def _value(reference: Any) -> Any:
    """Return what a task gave; raise what it says went wrong."""
    try:
        value = ray.get(reference)
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise _FailedError(f"the data cannot be loaded: {reason}", service_pb2.ERROR_TYPE_DATA_UNAVAILABLE) from error
    if isinstance(value, loading.Failure):
        raise _FailedError(value.message, value.error_type)
    return value


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the fleet until a signal or the end of its parent ends it; exits with 1 when Ray is gone."""
    options = _parser().parse_args(arguments)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        _start_ray(options)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        sys.exit(f"lockstep-fleet: no Ray cluster at {options.ray_address}: {error}")
    driver = FleetDriver(options.server, cpus_per_worker=options.cpus_per_worker, data_roots=options.data_root)
    for number in (signal.SIGTERM, signal.SIGINT):  # after ray.init, which sets its own
        signal.signal(number, lambda *_: driver.stop())
    if options.exit_with_parent:
        threading.Thread(target=_wait_for_parent, args=(driver,), daemon=True).start()
    print("lockstep-fleet is ready", flush=True)
    try:
        driver.run()
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        sys.exit(f"lockstep-fleet: the Ray cluster is gone: {str(error).strip().splitlines()[0]}")
    ray.shutdown()
    if driver.problem:
        sys.exit(f"lockstep-fleet: {driver.problem}")


def _start_ray(options: argparse.Namespace) -> None:
    if options.ray_address == "local":
        os.environ.pop("RAY_ADDRESS", None)
        ray.init(
            address="local",
            num_cpus=options.num_cpus,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=OBJECT_STORE_BYTES,
        )
    else:
        ray.init(address=options.ray_address, log_to_driver=False)


def _wait_for_parent(driver: FleetDriver) -> None:
    while os.read(0, 4096):
        pass
    driver.stop()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lockstep-fleet", description=__doc__)
    parser.add_argument("--server", default="127.0.0.1:50051", help="the server's host:port (default %(default)s)")
    parser.add_argument("--ray-address", default="auto", help='of the Ray cluster; "local" starts one (default auto)')
    parser.add_argument("--num-cpus", type=int, help="CPUs of a local Ray cluster")
    parser.add_argument("--cpus-per-worker", type=int, default=1, help="CPUs of each worker (default 1)")
    parser.add_argument(
        "--data-root", action="append", default=[], help="folder below which data.path is read; repeatable"
    )
    parser.add_argument("--exit-with-parent", action="store_true", help="end when standard input does")
    return parser


if __name__ == "__main__":
    main()
