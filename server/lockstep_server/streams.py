"""The streams of a job's workers: who has one now, and what is said on it."""

from collections.abc import Collection

from lockstep_proto.v1 import service_pb2, training_pb2
from lockstep_server.effects import Send
from lockstep_server.outbox import Outbox


class Streams:
    """The outboxes of the workers that have a stream, one each, and what these say they are."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._outboxes: dict[str, Outbox] = {}
        self._infos: dict[str, service_pb2.WorkerInfo] = {}

    def begin(self, hello: training_pb2.WorkerHello, outbox: Outbox) -> None:
        """A worker has a stream; the one that it had before is closed."""
        former = self._outboxes.get(hello.worker_id)
        if former is not None:
            former.close(None)
        self._outboxes[hello.worker_id] = outbox
        self._infos[hello.worker_id] = service_pb2.WorkerInfo(
            worker_id=hello.worker_id, job_id=self._job_id, host=hello.host, num_cpus=hello.num_cpus
        )

    def has(self, worker_id: str, outbox: Outbox) -> bool:
        """Whether a stream is the present one of a worker: it has been neither replaced nor ended."""
        return self._outboxes.get(worker_id) is outbox

    def end(self, worker_id: str) -> None:
        """The present stream of a worker has ended."""
        del self._outboxes[worker_id], self._infos[worker_id]

    def infos(self, worker_ids: Collection[str]) -> list[service_pb2.WorkerInfo]:
        """Return what there is to say of those of some workers that have a stream."""
        return [info for worker_id, info in self._infos.items() if worker_id in worker_ids]

    # What is said.

    def send(self, effect: Send) -> tuple[int, list[str]]:
        """Send a message to those of its workers that have a stream. Return to how many, and who is too far behind."""
        num_sent, behind = 0, []
        for worker_id in effect.worker_ids:
            outbox = self._outboxes.get(worker_id)
            if outbox is None:
                continue
            if outbox.behind(effect.version):
                behind.append(worker_id)
                continue
            outbox.put(effect.version, effect.message)
            num_sent += 1
        return num_sent, behind

    def forget(self, worker_id: str) -> None:
        """Throw away what is queued for a worker, and have it drop what it has."""
        self._outboxes[worker_id].replace(_FORGET)

    def listen(self, worker_id: str, listens: bool) -> None:
        """Take in what a worker sends, or leave it where it is for now."""
        self._outboxes[worker_id].listen(listens)

    def dismiss(self, worker_id: str, reason: str, *, refused: bool) -> None:
        """Say goodbye to a worker, if it has a stream."""
        if worker_id in self._outboxes:
            self._close(self._outboxes[worker_id], goodbye(reason, refused=refused))

    def beat(self) -> None:
        """Give a sign of life to those who hear nothing else."""
        for outbox in self._outboxes.values():
            outbox.put_if_empty(_HEARTBEAT)

    def close(self, last_word: bytes | None) -> None:
        """Close all of them, those of workers that were given up, too."""
        for outbox in self._outboxes.values():
            self._close(outbox, last_word)

    @staticmethod
    def _close(outbox: Outbox, last_word: bytes | None) -> None:
        outbox.listen(True)
        outbox.close(last_word)


def goodbye(reason: str, *, refused: bool) -> bytes:
    """Return the last message to a worker; `refused`: whether it is not to come again."""
    return training_pb2.ServerMessage(goodbye=training_pb2.Goodbye(reason=reason, refused=refused)).SerializeToString()


JOB_HAS_ENDED = goodbye("the job has ended", refused=False)
_FORGET = training_pb2.ServerMessage(forget=training_pb2.Forget()).SerializeToString()
_HEARTBEAT = training_pb2.ServerMessage(heartbeat=training_pb2.Heartbeat()).SerializeToString()
