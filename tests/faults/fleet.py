"""A small fleet: the product's Fleet and FleetLink, with plain processes for workers, in threads of the test."""

import queue
import subprocess
import sys
import threading
import time

from lockstep_proto.v1 import training_pb2
from lockstep_worker.fleet import Fleet
from lockstep_worker.fleet_effects import AskToLeave, ForgetData, KillWorker, LoadData, StartSpare, StartWorker, Tell
from lockstep_worker.fleet_link import FleetLink
from tests.faults import data
from tests.faults.worker_process import JOINED

TICK_S = 0.1
CLOSE_S = 5.0


class SmallFleet:
    """Runs workers for one server, one in each slot: a slot is what a command begins with that starts its worker.

    A worker in one of the slots that are `out_of_reach` cannot be ended.
    """

    def __init__(self, server, environment, log, *, slots=((), ())):
        self.workers = {}  # of all that were started, by id
        self.said = {}  # the lines of each
        self.out_of_reach = set()
        self._server = server
        self._environment = environment
        self._log = log
        self._slots = slots
        self._slot_of = {}  # by worker id
        self._events = queue.SimpleQueue()
        self._stream = None
        self._fleet = Fleet("w", grace_s=5.0)
        resources = training_pb2.FleetResources(worker_slots=len(slots), cpus_per_worker=1, nodes=1)
        self._post(lambda: self._fleet.resources_changed(resources, time.monotonic()))
        self._link = FleetLink(
            server,
            lambda stream: self._post(lambda: self._connected(stream)),
            lambda orders: self._post(lambda: self._fleet.ordered(orders.jobs, time.monotonic())),
            lambda: self._post(self._disconnected),
            lambda: None,
        )
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def living(self):
        """The processes of workers that have not ended, oldest first."""
        return [process for process in list(self.workers.values()) if process.poll() is None]

    def close(self):
        self._events.put(None)
        self._thread.join()
        self._link.close(CLOSE_S)
        for process in self.workers.values():
            process.kill()
            process.wait()
            process.stdin.close()

    def _run(self):
        while True:
            try:
                event = self._events.get(timeout=TICK_S)
            except queue.Empty:
                event = self._tick
            if event is None:
                return
            for effect in event():
                self._carry(effect)

    def _post(self, event):
        self._events.put(event)

    def _tick(self):
        return self._fleet.tick(time.monotonic())

    def _connected(self, stream):
        self._stream = stream
        return self._fleet.connected(time.monotonic())

    def _disconnected(self):
        self._stream = None
        self._fleet.disconnected()
        return []

    def _carry(self, effect):
        match effect:
            case LoadData(job_id, spec):
                self._shards = spec.shards
                loaded = training_pb2.DataLoaded(
                    job_id=job_id,
                    num_rows=len(data.X),
                    num_validation_rows=len(data.VALIDATION[0]),
                    data_fingerprint="training",
                    validation_fingerprint="validation",
                )
                self._post(lambda: self._fleet.data_loaded(loaded, time.monotonic()))
            case ForgetData():
                pass
            case StartWorker(job_id, worker_id):
                self._start(job_id, worker_id)
            case StartSpare(name):  # each worker is a process of its own here
                self._post(lambda: self._fleet.spare_ended(name))
            case AskToLeave(worker_id):
                self.workers[worker_id].terminate()
            case KillWorker(worker_id):
                if worker_id in self.workers and self._slot_of[worker_id] not in self.out_of_reach:
                    self.workers[worker_id].kill()
            case Tell(message):
                if self._stream is not None:
                    self._stream.send(message)

    def _start(self, job_id, worker_id):
        slot = self._slot_of[worker_id] = self._free_slot()
        arguments = [self._server, job_id, worker_id, str(self._shards)]
        process = self.workers[worker_id] = subprocess.Popen(
            [*self._slots[slot], sys.executable, "-m", "tests.faults.worker_process", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=self._environment,
            text=True,
        )
        threading.Thread(target=self._listen, args=(worker_id, process), daemon=True).start()

    def _free_slot(self):
        """The first one within reach in which no worker lives, or else one with a worker that is to end."""
        taken = {self._slot_of[name] for name, process in self.workers.items() if process.poll() is None}
        free = [i for i in range(len(self._slots)) if i not in taken | self.out_of_reach]
        return (free or sorted(taken - self.out_of_reach))[0]

    def _listen(self, worker_id, process):
        said = self.said[worker_id] = []
        with process.stdout as lines:
            for line in lines:
                said.append(line.rstrip())
                if said[-1] == JOINED:
                    self._post(lambda: self._fleet.worker_joined(worker_id) or [])
        code = process.wait()
        error = None if code == 0 else f"its process ended with {code}"
        self._post(lambda: self._fleet.worker_ended(worker_id, error, time.monotonic()))
