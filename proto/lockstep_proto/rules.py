"""The rules of a JobSpec. `check` names everything that breaks one, with its path and value."""

import re
from collections.abc import Iterator
from typing import Any

from lockstep_proto.reader import Violation, enum_names, unreadable
from lockstep_proto.v1 import job_pb2

MAX_SHARDS = 4096
MAX_LAYERS = 1000
MAX_LENGTHS = {"epochs": 10**9, "steps": 10**15}  # so that steps can be counted in 64 bits
PROBABILITIES_SUM_TOLERANCE = 1e-4  # of a row of targets that were rounded to float32 and must sum to 1
MAX_NAME = 64
NAME = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_NAME}}}")
UPLOAD_ID = re.compile(r"[0-9a-f]{64}\.[a-z0-9]+")
Found = Iterator[Violation]


def check(spec: job_pb2.JobSpec, *, require_data: bool = True) -> list[Violation]:
    """Return all violations of a complete spec, in the order of its fields; none if it is sound.

    `require_data`: whether the training data must be named; a client that sends arrays names them later.
    """
    unread = unreadable(spec)
    known = {violation.path for violation in unread}
    broken = [
        *_name(spec),
        *_network(spec),
        *_loss(spec),
        *_optimizer(spec.optimizer),
        *_schedule(spec.schedule),
        *_penalty_and_clipping(spec),
        *_lengths(spec),
        *_stopping(spec, require_data=require_data),
        *_shards_and_workers(spec),
        *_wire(spec),
        *_data(spec, require_data=require_data),
        *_start(spec),
        *_recovery(spec),
    ]
    return unread + [violation for violation in broken if violation.path not in known]


def _name(spec: job_pb2.JobSpec) -> Found:
    if not NAME.fullmatch(spec.name):
        yield Violation("name", f"must be 1 to 64 letters, digits, '-', '_' or '.', got {spec.name!r}")


def _network(spec: job_pb2.JobSpec) -> Found:
    network = spec.network
    if network.inputs < 1:
        yield Violation("network.inputs", f"must be at least 1, got {network.inputs}")
    if not 1 <= len(network.layers) <= MAX_LAYERS:
        yield Violation("network.layers", f"must be 1 to {MAX_LAYERS} layers, got {len(network.layers)}")
    last = len(network.layers) - 1
    for i, layer in enumerate(network.layers):
        path = f"network.layers[{i}]"
        if layer.units < 1:
            yield Violation(f"{path}.units", f"must be at least 1, got {layer.units}")
        if layer.activation == job_pb2.ACTIVATION_SOFTMAX and i < last:
            yield Violation(f"{path}.activation", "softmax may only stand in the last layer")
        if layer.activation == job_pb2.ACTIVATION_SOFTMAX and i == last and layer.units == 1:
            yield Violation(f"{path}.units", "must be at least 2 with softmax, got 1; one unit takes sigmoid")
        if not 0 <= layer.dropout < 1:
            yield Violation(f"{path}.dropout", f"must be in [0, 1), got {layer.dropout:g}")
        if layer.dropout and i == last:
            yield Violation(f"{path}.dropout", f"must not be in the last layer, got {layer.dropout:g}")


_NEEDED = {
    job_pb2.LOSS_CROSS_ENTROPY: job_pb2.ACTIVATION_SOFTMAX,
    job_pb2.LOSS_BINARY_CROSS_ENTROPY: job_pb2.ACTIVATION_SIGMOID,
}


def _loss(spec: job_pb2.JobSpec) -> Found:
    losses = {number: name for name, number in enum_names(job_pb2.Loss.DESCRIPTOR).items()}
    if spec.loss not in losses:
        yield Violation("loss", f"must be given: one of {', '.join(losses.values())}")
    elif spec.loss in _NEEDED and spec.network.layers:
        activations = {number: name for name, number in enum_names(job_pb2.Activation.DESCRIPTOR).items()}
        needed, given = _NEEDED[spec.loss], spec.network.layers[-1].activation
        if given != needed:
            text = f"{losses[spec.loss]} needs {activations[needed]} in the last layer, got {activations.get(given)}"
            yield Violation("loss", text)
    if spec.HasField("huber_delta"):
        if spec.loss != job_pb2.LOSS_HUBER:
            yield Violation("huber_delta", "may only be given with loss = huber")
        elif spec.huber_delta <= 0:
            yield Violation("huber_delta", f"must be greater than 0, got {spec.huber_delta:g}")


def _optimizer(optimizer: job_pb2.Optimizer) -> Found:
    kind = optimizer.WhichOneof("kind")
    if kind is None:
        return
    settings: Any = getattr(optimizer, kind)
    path = f"optimizer.{kind}"
    for field in settings.DESCRIPTOR.fields:
        value = getattr(settings, field.name)
        if field.name in ("learning_rate", "epsilon") and value <= 0:
            yield Violation(f"{path}.{field.name}", f"must be greater than 0, got {value:g}")
        if field.name in ("momentum", "decay", "beta1", "beta2") and not 0 <= value < 1:
            yield Violation(f"{path}.{field.name}", f"must be in [0, 1), got {value:g}")
        if field.name == "weight_decay" and value < 0:
            yield Violation(f"{path}.{field.name}", f"must be at least 0, got {value:g}")
    if kind == "sgd" and settings.nesterov and settings.momentum == 0:
        yield Violation(f"{path}.nesterov", "needs momentum greater than 0, got 0")


def _schedule(schedule: job_pb2.Schedule) -> Found:
    if schedule.warmup_steps < 0:
        yield Violation("schedule.warmup_steps", f"must be at least 0, got {schedule.warmup_steps}")
    match schedule.WhichOneof("kind"):
        case "step":
            if schedule.step.every_steps < 1:
                yield Violation("schedule.step.every_steps", f"must be at least 1, got {schedule.step.every_steps}")
            if not 0 < schedule.step.factor <= 1:
                yield Violation("schedule.step.factor", f"must be in (0, 1], got {schedule.step.factor:g}")
        case "exponential":
            if not 0 < schedule.exponential.decay <= 1:
                yield Violation("schedule.exponential.decay", f"must be in (0, 1], got {schedule.exponential.decay:g}")
        case "cosine":
            if schedule.cosine.steps < 1:
                yield Violation("schedule.cosine.steps", f"must be at least 1, got {schedule.cosine.steps}")
            if not 0 <= schedule.cosine.final_factor <= 1:
                value = schedule.cosine.final_factor
                yield Violation("schedule.cosine.final_factor", f"must be in [0, 1], got {value:g}")


def _penalty_and_clipping(spec: job_pb2.JobSpec) -> Found:
    for name in ("l1", "l2"):
        if getattr(spec.penalty, name) < 0:
            yield Violation(f"penalty.{name}", f"must be at least 0, got {getattr(spec.penalty, name):g}")
    if spec.HasField("clip_norm") and spec.clip_norm <= 0:
        yield Violation("clip_norm", f"must be greater than 0, got {spec.clip_norm:g}")


def _lengths(spec: job_pb2.JobSpec) -> Found:
    kind, rows = spec.batch_size.WhichOneof("kind"), spec.batch_size.rows
    if kind is None or (kind == "full" and not spec.batch_size.full):
        yield Violation("batch_size", 'must be given: a number of rows, or "full"')
    elif kind == "rows" and rows < 1:
        yield Violation("batch_size", f"must be at least 1, got {rows}")
    elif kind == "rows" and 1 <= spec.shards <= MAX_SHARDS and rows % spec.shards:
        lower = rows - rows % spec.shards
        fits = f"{lower} or {lower + spec.shards}" if lower else str(spec.shards)
        yield Violation("batch_size", f"must be a multiple of shards ({spec.shards}), got {rows}; try {fits}")
    if not spec.HasField("epochs") and not spec.HasField("steps"):
        yield Violation("epochs", "epochs or steps must be given")
    for name, longest in MAX_LENGTHS.items():
        if spec.HasField(name) and not 1 <= getattr(spec, name) <= longest:  # type: ignore[arg-type]
            bound = "at least 1" if getattr(spec, name) < 1 else f"at most {longest}"
            yield Violation(name, f"must be {bound}, got {getattr(spec, name)}")


def _stopping(spec: job_pb2.JobSpec, *, require_data: bool) -> Found:
    stopping = spec.stopping
    if stopping.HasField("gradient_norm"):
        if stopping.gradient_norm <= 0:
            yield Violation("stopping.gradient_norm", f"must be greater than 0, got {stopping.gradient_norm:g}")
        if not spec.batch_size.full:
            reason = "the gradient of a mini-batch is not that of Q, and its norm says nothing about convergence"
            yield Violation("stopping.gradient_norm", f'needs batch_size = "full": {reason}')
    if stopping.HasField("patience"):
        if stopping.patience < 1:
            yield Violation("stopping.patience", f"must be at least 1, got {stopping.patience}")
        if require_data and not spec.HasField("validation"):
            yield Violation("stopping.patience", "needs validation data")
    if stopping.HasField("wall_time_s") and stopping.wall_time_s <= 0:
        yield Violation("stopping.wall_time_s", f"must be greater than 0, got {stopping.wall_time_s:g}")


def _shards_and_workers(spec: job_pb2.JobSpec) -> Found:
    if not 1 <= spec.shards <= MAX_SHARDS:
        yield Violation("shards", f"must be between 1 and {MAX_SHARDS}, got {spec.shards}")
    workers = spec.workers
    if workers.min < 1:
        yield Violation("workers.min", f"must be at least 1, got {workers.min}")
    elif workers.min > spec.shards >= 1:
        yield Violation("workers.min", f"must be at most shards ({spec.shards}), got {workers.min}")
    if workers.max < workers.min:
        yield Violation("workers.max", f"must be at least workers.min ({workers.min}), got {workers.max}")
    if workers.wait_s <= 0:
        yield Violation("workers.wait_s", f"must be greater than 0, got {workers.wait_s:g}")


def _wire(spec: job_pb2.JobSpec) -> Found:
    dtypes, wire_dtypes = (
        {number: name for name, number in enum_names(enum).items()}
        for enum in (job_pb2.DType.DESCRIPTOR, job_pb2.WireDType.DESCRIPTOR)
    )
    dtype, given = dtypes.get(spec.dtype), wire_dtypes.get(spec.wire_dtype)
    if dtype and given not in (dtype, "bfloat16" if dtype == "float32" else dtype):
        yield Violation("wire_dtype", f"must be dtype ({dtype}), or bfloat16 with float32; got {given}")


def _data(spec: job_pb2.JobSpec, *, require_data: bool) -> Found:
    if require_data and not spec.HasField("data"):
        yield Violation("data", "must be given: a path or an upload, and its target column")
    for name in ("data", "validation"):
        if spec.HasField(name):
            yield from _one_data(getattr(spec, name), name, spec)


def _one_data(data: job_pb2.Data, path: str, spec: job_pb2.JobSpec) -> Found:
    source = data.WhichOneof("source")
    if source is None or not getattr(data, source):
        yield Violation(path, "needs a path or an upload")
        return
    arrays = getattr(data, source).endswith(".npz")
    if not data.target and not arrays:
        yield Violation(f"{path}.target", "must name the target column")
    outputs = spec.network.layers[-1].units if spec.network.layers else 0
    if len(data.target) not in (0, 1, outputs):
        text = f"must be one column of class labels or {outputs} columns of values, got {len(data.target)}"
        yield Violation(f"{path}.target", text)
    if data.features and not arrays and len(data.features) != spec.network.inputs:
        text = f"must name network.inputs ({spec.network.inputs}) columns, got {len(data.features)}"
        yield Violation(f"{path}.features", text)


def _start(spec: job_pb2.JobSpec) -> Found:
    if not spec.HasField("start_from"):
        return
    start = spec.start_from
    source = start.WhichOneof("source")
    if source is None or not getattr(start, source):
        yield Violation("start_from", "must name a job, or the file of a saved model")
    if start.HasField("version") and start.version < 0:
        yield Violation("start_from.version", f"must be at least 0, got {start.version}")
    for field, given in (("version", start.HasField("version")), ("best", start.best)):
        if given and source == "model":
            yield Violation(f"start_from.{field}", "may only be given with a job; a saved model is one version")
    if start.HasField("version") and start.best and source != "model":
        yield Violation("start_from.best", "may not be given with version, which names another")
    if spec.HasField("initial_parameters"):
        yield Violation("initial_parameters", "may not be given with start_from, which gives the parameters")


def _recovery(spec: job_pb2.JobSpec) -> Found:
    checkpoints = spec.checkpoints
    if checkpoints.HasField("every_steps") and checkpoints.every_steps < 1:
        yield Violation("checkpoints.every_steps", f"must be at least 1, got {checkpoints.every_steps}")
    if checkpoints.HasField("every_s") and checkpoints.every_s <= 0:
        yield Violation("checkpoints.every_s", f"must be greater than 0, got {checkpoints.every_s:g}")
    if not 0 <= spec.audit <= 1:
        yield Violation("audit", f"must be in [0, 1], got {spec.audit:g}")
