"""What workers are sent: work, and the versions it begins from."""

from collections.abc import Iterable
from functools import lru_cache

from lockstep_proto.v1 import training_pb2
from lockstep_server.assignment import Range
from lockstep_server.crew import WorkerView
from lockstep_server.effects import Send
from lockstep_server.handout import Gift
from lockstep_server.progress import Progress
from lockstep_server.rounds import EVALUATE, Kind
from lockstep_server.update import ParameterUpdate

WAIT: Kind = training_pb2.WORK_KIND_WAIT


class Dispatch:
    """Makes the messages of one attempt."""

    def __init__(self, attempt: int, update: ParameterUpdate, progress: Progress) -> None:
        self._attempt = attempt
        self._update = update
        self._progress = progress
        self._place = (-1, -1, -1)  # version, epoch and step in it of the last message
        self._place_part = b""  # says them; it is the same for all workers
        self._place_message = training_pb2.ServerMessage(work=training_pb2.Work())

    def hand_over(self, gifts: Iterable[Gift], kind: Kind) -> list[Send]:
        """Send each worker what it was given."""
        sends: list[Send] = []
        for gift in gifts:
            sends += self._work(gift, kind)
        return sends

    def welcome(self, gift: Gift) -> list[Send]:
        """Send a worker without work what there is, so that it can begin when it is given some."""
        return self._work(gift, WAIT)

    def _work(self, gift: Gift, kind: Kind) -> list[Send]:
        """Send work, with the present version and what there is of the next to a worker that has not got them."""
        worker, update = gift.worker, self._update
        worker_ids, was_synced, worker.synced = [worker.worker_id], worker.synced, True
        work = Send(worker_ids, update.version, self._message(tuple(gift.ranges), kind))
        master = self._master(worker, was_synced) if kind == EVALUATE and update.rounds else []
        if was_synced:
            return [*master, work]
        whole = [Send(worker_ids, update.version, message) for message in update.messages]
        made = [Send(worker_ids, update.version + 1, message) for message in update.next_messages]
        return [*whole, *master, work, *made]

    def _master(self, worker: WorkerView, was_synced: bool) -> list[Send]:
        """Send the parameters that were not rounded, which an evaluation is computed from, once to each worker."""
        version = self._update.version
        if was_synced and worker.master_version == version:
            return []
        worker.master_version = version
        return [Send([worker.worker_id], version, message) for message in self._update.master_messages]

    def _message(self, ranges: tuple[Range, ...], kind: Kind) -> bytes:
        """Return the message of work, in two parts: to protobuf, one after the other is one message with both."""
        place = self._update.version, self._progress.epoch, self._progress.step_in_epoch
        if place != self._place:
            self._place, work = place, self._place_message.work
            work.version, work.epoch, work.step_in_epoch = place
            self._place_part = self._place_message.SerializeToString()
        return _task_part(self._attempt, kind, ranges) + self._place_part


@lru_cache(maxsize=4096)  # the shares of workers seldom change
def _task_part(attempt: int, kind: Kind, ranges: tuple[Range, ...]) -> bytes:
    shards = [training_pb2.ShardRange(lo=lo, hi=hi) for lo, hi in ranges]
    work = training_pb2.Work(attempt=attempt, kind=kind, ranges=shards)
    return training_pb2.ServerMessage(work=work).SerializeToString()
