"""The defaults of a JobSpec, each in one place."""

from lockstep_proto.v1 import job_pb2

SHARDS = 8  # divides evenly among 1, 2, 4 and 8 workers
WAIT_S = 3600.0  # long enough to bring a cluster up, short enough to notice that nobody does
_WIRE_DTYPES = {
    job_pb2.DTYPE_FLOAT32: job_pb2.WIRE_DTYPE_FLOAT32,
    job_pb2.DTYPE_FLOAT64: job_pb2.WIRE_DTYPE_FLOAT64,
}
_OPTIMIZERS = {
    "sgd": {"learning_rate": 0.01, "momentum": 0.0},
    "adagrad": {"learning_rate": 0.01, "epsilon": 1e-10},
    "rmsprop": {"learning_rate": 0.001, "decay": 0.9, "epsilon": 1e-8},
    "adam": {"learning_rate": 0.001, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8},
    "adamw": {"learning_rate": 0.001, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.01},
}


def complete(spec: job_pb2.JobSpec) -> job_pb2.JobSpec:
    """Return a copy with every default filled in. What is set stays; a complete spec comes back equal."""
    done = job_pb2.JobSpec()
    done.CopyFrom(spec)
    done.name = done.name or "job"
    for layer in done.network.layers:
        layer.activation = layer.activation or job_pb2.ACTIVATION_IDENTITY
    _complete_optimizer(done)
    _complete_schedule(done.schedule)
    if done.loss == job_pb2.LOSS_HUBER and not done.HasField("huber_delta"):
        done.huber_delta = 1.0
    if not done.HasField("shards"):
        done.shards = SHARDS
    if not done.HasField("seed"):
        done.seed = 0
    done.dtype = done.dtype or job_pb2.DTYPE_FLOAT32
    done.wire_dtype = done.wire_dtype or _WIRE_DTYPES.get(done.dtype, job_pb2.WIRE_DTYPE_UNSPECIFIED)
    done.numerics = done.numerics or job_pb2.NUMERICS_EXACT
    if not done.initial_parameters.initializer and not done.HasField("start_from"):
        done.initial_parameters.initializer = job_pb2.INITIALIZER_GLOROT_UNIFORM
    _complete_workers(done)
    return done


def _complete_optimizer(spec: job_pb2.JobSpec) -> None:
    kind = spec.optimizer.WhichOneof("kind") or "sgd"
    settings = getattr(spec.optimizer, kind)
    settings.SetInParent()
    for name, value in _OPTIMIZERS[kind].items():
        if not settings.HasField(name):
            setattr(settings, name, value)


def _complete_schedule(schedule: job_pb2.Schedule) -> None:
    match schedule.WhichOneof("kind"):
        case None:
            schedule.constant.SetInParent()
        case "step" if not schedule.step.HasField("factor"):
            schedule.step.factor = 0.1
        case "cosine" if not schedule.cosine.HasField("final_factor"):
            schedule.cosine.final_factor = 0.0


def _complete_workers(spec: job_pb2.JobSpec) -> None:
    workers = spec.workers
    if not workers.HasField("min"):
        workers.min = 1
    if not workers.HasField("max"):
        workers.max = max(spec.shards, workers.min)
    if not workers.HasField("wait_s"):
        workers.wait_s = WAIT_S
