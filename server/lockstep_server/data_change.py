"""Whether the data of a job, loaded again, are still those it began with."""

from lockstep_proto.v1 import service_pb2, training_pb2

DATA_FIELDS = ("num_rows", "num_validation_rows", "data_fingerprint", "validation_fingerprint")
_SHOWN = 12  # digits of a fingerprint


def data_change(job: service_pb2.Job, told: training_pb2.DataLoaded) -> str:
    """Return what differs between what a job knows of its data and what the fleet has loaded; empty if nothing."""
    before, now = (job.num_rows, job.num_validation_rows), (told.num_rows, told.num_validation_rows)
    if before != now:
        return f"{before[0]} rows and {before[1]} for validation before, {now[0]} and {now[1]} now"
    for what, field in (("training", "data_fingerprint"), ("validation", "validation_fingerprint")):
        old, new = getattr(job, field), getattr(told, field)
        if old != new:
            return f"the {what} data have other values in as many rows (fingerprint {old[:_SHOWN]}, now {new[:_SHOWN]})"
    return ""
