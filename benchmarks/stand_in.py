"""Takes the fleet's place: has a server believe in rows and in room for workers. Workers come by themselves."""

import queue
import threading
from collections.abc import Iterator
from typing import Any, Self

import grpc

from lockstep_proto import channels
from lockstep_proto.v1 import training_pb2, training_pb2_grpc


class StandIn:
    """Every job gets `num_rows` rows of training data at once, and none for validation."""

    def __init__(self, address: str, *, worker_slots: int, num_rows: int) -> None:
        self._num_rows = num_rows
        self._known: set[str] = set()
        self._outgoing: queue.SimpleQueue[training_pb2.FleetMessage | None] = queue.SimpleQueue()
        resources = training_pb2.FleetResources(worker_slots=worker_slots, cpus_per_worker=1, nodes=1)
        self._outgoing.put(training_pb2.FleetMessage(resources=resources))
        self._channel = channels.connect(address)
        stub = training_pb2_grpc.FleetServiceStub(self._channel)
        self._orders: Any = stub.Attach(iter(self._outgoing.get, None), wait_for_ready=True)
        self._thread = threading.Thread(target=self._serve, args=[self._orders])
        self._thread.start()

    def _serve(self, stream: Iterator[training_pb2.FleetOrders]) -> None:
        try:
            for orders in stream:
                for order in orders.jobs:
                    self._give_data(order.job_id)
        except grpc.RpcError:
            return  # the end of the server, or of this

    def _give_data(self, job_id: str) -> None:
        if job_id in self._known:
            return
        self._known.add(job_id)
        loaded = training_pb2.DataLoaded(job_id=job_id, num_rows=self._num_rows, data_fingerprint="rows of noise")
        self._outgoing.put(training_pb2.FleetMessage(data_loaded=loaded))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._outgoing.put(None)
        self._orders.cancel()
        self._thread.join()
        self._channel.close()
