"""What a job takes over of the checkpoint it starts from: a decision without I/O.

The parameters always; the optimizer state where there is one and the optimizer is of the same kind; the position only
where seed, data, shards and batch_size are equal, for then the steps that follow are those that would have followed
there. What was best so far is compared with what comes, so it goes along only where both are measured alike.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from lockstep_proto.v1 import service_pb2
from lockstep_proto.v1.job_pb2 import BatchSize, JobSpec
from lockstep_server.checkpoints import Checkpoint, Origin
from lockstep_server.optimizers import optimizer_from_spec
from lockstep_server.progress import Progress

BEST_FIELDS = ("best_validation_loss", "epochs_without_gain", "validation_loss")
_SHOWN = 12  # digits of a fingerprint


@dataclass(frozen=True)
class Start:
    """What a job begins from, and what people are told of where it comes from; nothing if the job began afresh."""

    checkpoint: Checkpoint
    words: str = ""


def take_over(source: Checkpoint, origin: Origin, job: service_pb2.Job) -> Start:
    """Return what `job`, whose data are loaded, takes over of a checkpoint of `origin`."""
    taken, left = ["parameters"], []
    checkpoint = version_0(source.parameters)
    state_differs = list(_state_differences(source, origin.spec, job.spec))
    if not state_differs:
        checkpoint = replace(checkpoint, optimizer_state=source.optimizer_state, num_updates=source.num_updates)
        taken += ["optimizer state"] if source.optimizer_state else []
    else:
        left.append(f"not the optimizer state: {'; '.join(state_differs)}")
    position_differs = list(_position_differences(origin, job))
    if not position_differs:
        best_differs = list(_best_differences(origin, job))
        checkpoint = _with_position(checkpoint, source, best=not best_differs)
        taken.append(f"position (epoch {source.epoch}, step {source.step_in_epoch})")
        left += [f"not the best so far: {'; '.join(best_differs)}"] if best_differs and source.best is not None else []
    else:
        left.append(f"not the position: {'; '.join(position_differs)}")
    words = ", ".join(taken) + "".join(f"; {one}" for one in left)
    return Start(checkpoint, f"starts from job {origin.job_id} at version {source.version}: {words}")


def version_0(parameters: Any) -> Checkpoint:
    """Return the beginning of a training from given parameters, a flat vector."""
    return Checkpoint(
        version=0,
        epoch=0,
        step_in_epoch=0,
        parameters=parameters,
        optimizer_state={},
        num_updates=0,
        best=None,
        progress=Progress().to_dict(),
    )


def _with_position(checkpoint: Checkpoint, source: Checkpoint, *, best: bool) -> Checkpoint:
    beginning = Progress().to_dict()
    progress = source.progress | {"elapsed_s": beginning["elapsed_s"]}  # the wall time is each job's own
    if not best:
        progress |= {field: beginning[field] for field in BEST_FIELDS}
    return replace(
        checkpoint,
        version=source.version,
        epoch=source.epoch,
        step_in_epoch=source.step_in_epoch,
        best=source.best if best else None,
        progress=progress,
    )


def _state_differences(source: Checkpoint, there: JobSpec, here: JobSpec) -> Iterator[str]:
    kinds = there.optimizer.WhichOneof("kind"), here.optimizer.WhichOneof("kind")
    needed = set(optimizer_from_spec(here.optimizer).state_names)
    if kinds[0] != kinds[1]:
        yield f"{kinds[0]} there, {kinds[1]} here"
    elif needed != set(source.optimizer_state):
        names = [", ".join(sorted(names)) or "none" for names in (set(source.optimizer_state), needed)]
        yield f"{names[0]} there, {names[1]} here"


def _position_differences(origin: Origin, job: service_pb2.Job) -> Iterator[str]:
    there, here = origin.spec, job.spec
    yield from _differing("seed", there.seed, here.seed)
    yield from _differing("shards", there.shards, here.shards)
    yield from _differing("batch_size", _plain(there.batch_size), _plain(here.batch_size))
    if not origin.data_fingerprint:
        yield "the data there are not known"
    yield from _differing("data", _short(origin.data_fingerprint), _short(job.data_fingerprint))


def _best_differences(origin: Origin, job: service_pb2.Job) -> Iterator[str]:
    there, here = origin.spec, job.spec
    yield from _differing("validation data", _short(origin.validation_fingerprint), _short(job.validation_fingerprint))
    if (there.loss, there.huber_delta) != (here.loss, here.huber_delta):
        yield "the loss is another"
    if there.network != here.network:
        yield "the network is another"


def _differing(what: str, there: object, here: object) -> Iterator[str]:
    if there != here:
        yield f"{what} {there} there, {here} here"


def _short(fingerprint: str) -> str:
    return fingerprint[:_SHOWN] or "none"


def _plain(batch_size: BatchSize) -> int | str:
    return "full" if batch_size.full else batch_size.rows
