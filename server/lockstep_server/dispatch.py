"""What workers are sent: work, and the versions it begins from."""

from collections.abc import Iterable, Sequence
from typing import Any

from lockstep_proto.v1 import training_pb2
from lockstep_server.assignment import Range
from lockstep_server.crew import WorkerView
from lockstep_server.effects import Send
from lockstep_server.handout import Gift
from lockstep_server.progress import Progress
from lockstep_server.rounds import EVALUATE, Kind
from lockstep_server.update import ParameterUpdate

MAX_MESSAGES = 256  # kept to be sent again with another version; the shares of workers seldom change
WAIT: Kind = training_pb2.WORK_KIND_WAIT


class Dispatch:
    """Makes the messages of one attempt."""

    def __init__(self, attempt: int, update: ParameterUpdate, progress: Progress) -> None:
        self._attempt = attempt
        self._update = update
        self._progress = progress
        self._messages: dict[tuple[Any, ...], training_pb2.ServerMessage] = {}

    def hand_over(self, gifts: Iterable[Gift], kind: Kind) -> list[Send]:
        """Send each worker what it was given."""
        return [send for gift in gifts for send in self._work(gift, kind)]

    def welcome(self, gift: Gift) -> list[Send]:
        """Send a worker without work what there is, so that it can begin when it is given some."""
        return self._work(gift, WAIT)

    def _work(self, gift: Gift, kind: Kind) -> list[Send]:
        """Send work, with the present version and what there is of the next to a worker that has not got them."""
        worker, update = gift.worker, self._update
        worker_ids, was_synced, worker.synced = [worker.worker_id], worker.synced, True
        work = Send(worker_ids, update.version, self._message(gift.ranges, kind))
        master = self._master(worker, was_synced) if kind == EVALUATE and update.rounds else []
        if was_synced:
            return [*master, work]
        whole = [Send(worker_ids, update.version, message) for message in update.messages]
        made = [message for message in update.next_messages if message is not None]
        return [*whole, *master, work, *(Send(worker_ids, update.version + 1, message) for message in made)]

    def _master(self, worker: WorkerView, was_synced: bool) -> list[Send]:
        """Send the parameters that were not rounded, which an evaluation is computed from, once to each worker."""
        version = self._update.version
        if was_synced and worker.master_version == version:
            return []
        worker.master_version = version
        return [Send([worker.worker_id], version, message) for message in self._update.parameters.messages]

    def _message(self, ranges: Sequence[Range], kind: Kind) -> bytes:
        key = (kind, *ranges)
        message = self._messages.get(key)
        if message is None:
            if len(self._messages) >= MAX_MESSAGES:
                self._messages.clear()
            message = self._messages[key] = training_pb2.ServerMessage(
                work=training_pb2.Work(
                    attempt=self._attempt,
                    kind=kind,
                    ranges=[training_pb2.ShardRange(lo=lo, hi=hi) for lo, hi in ranges],
                )
            )
        work = message.work
        work.version, work.epoch, work.step_in_epoch = (
            self._update.version,
            self._progress.epoch,
            self._progress.step_in_epoch,
        )
        return message.SerializeToString()
