"""What each verb of the `lockstep` command does."""

import argparse
import signal
import sys
from typing import Any

from lockstep import addresses, background, submission
from lockstep.client import Client
from lockstep.errors import InvalidSpecError, JobFailedError
from lockstep.interrupts import held
from lockstep.job import Job, JobState
from lockstep.model import Model
from lockstep.output import (
    checkpoint_row,
    event_fields,
    job_fields,
    message_fields,
    next_commands,
    print_events,
    print_fields,
    print_json,
    print_status,
    print_table,
    short_id,
    to_json,
)
from lockstep.progress import counted, says_how_to_come_back
from lockstep.verdicts import comparison_fields, comparison_lines, verification_fields, verification_lines
from lockstep_proto.spec import SpecError, load_file, override, to_dict
from lockstep_proto.v1 import job_pb2


def up(options: argparse.Namespace) -> None:
    """Start the background cluster."""
    known = background.running()
    if known is not None:
        print(f"a cluster is up already at {known['address']}; `lockstep down` ends it")
        return
    names = ("workers", "cpus_per_worker", "port", "http_port", "data_root")
    arguments = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in names]
    known = background.up(arguments)
    print_fields([("server", known["address"]), ("metrics", known["metrics_url"]), ("workers", options.workers)])
    server = addresses.option(known["address"])
    print(f"next:  lockstep submit examples/digits.toml --watch{server}\n       lockstep down")


def down(options: argparse.Namespace) -> None:
    """End the background cluster."""
    print("the cluster has ended" if background.down() else "no cluster is up")


def demo(options: argparse.Namespace) -> None:
    """Run the demo."""
    from lockstep import demo

    demo.run(options.workers, options.cpus_per_worker, options.output)


def submit(options: argparse.Namespace) -> None:
    """Queue a job, and follow it if asked to."""
    if options.timeout is not None and not options.watch:
        raise ValueError("--timeout limits the watching; it needs --watch")
    spec = _read_spec(options)
    with Client(options.server) as client:
        job = client.submit(spec, request_id=options.request_id)
        if options.format == "json" and not options.watch:
            print_json(job_fields(job))
        elif options.format == "text":
            print(f"{_summary(job)}\n{next_commands(job)}", flush=True)
        if options.watch:
            _follow(client, job, options)


def list_jobs(options: argparse.Namespace) -> None:
    """List jobs."""
    with Client(options.server) as client:
        jobs = client.list(limit=options.limit)
    if options.format == "json":
        print_json([job_fields(job) for job in jobs])
    elif not jobs:
        print("no jobs; submit one with `lockstep submit examples/digits.toml`")
    else:
        header = ("id", "name", "state", "step", "loss", "workers", "phase")
        print_table(header, [_row(job) for job in jobs])


def status(options: argparse.Namespace) -> None:
    """Show a job."""
    with Client(options.server) as client:
        job = client.get(options.id)
        events = job.events
    if options.format == "json":
        print_json(job_fields(job) | {"events": [event_fields(event) for event in events]})
        return
    print_status(job)
    print()
    print_events(events)


def watch(options: argparse.Namespace) -> None:
    """Follow a job."""
    with Client(options.server) as client:
        _follow(client, client.get(options.id), options)


def checkpoints(options: argparse.Namespace) -> None:
    """List a job's checkpoints."""
    with Client(options.server) as client:
        job = client.get(options.id)
        kept = job.checkpoints()
    if options.format == "json":
        print_json([vars(checkpoint) for checkpoint in kept])
    elif not kept:
        print(f"no checkpoint of job {short_id(job)} is kept")
    else:
        header = ("version", "epoch", "step of epoch", "bytes", "time", "validation loss")
        print_table(header, [checkpoint_row(checkpoint) for checkpoint in kept])


def verify(options: argparse.Namespace) -> None:
    """Recompute a job."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else the job that recomputes it would stay
    with held(), Client(options.server) as client:
        found = client.verify(
            options.id, from_step=options.from_step, to_step=options.to_step, progress=True, timeout_s=options.timeout
        )
    if options.format == "json":
        print_json(verification_fields(found))
    else:
        print("\n".join(verification_lines(found)))
    sys.exit(0 if found.equal else 1)


def diff(options: argparse.Namespace) -> None:
    """Compare two jobs."""
    with Client(options.server) as client:
        a, b = client.get(options.id), client.get(options.other)
        found = client.diff(a.id, b.id)
    if options.format == "json":
        print_json({"a": a.id, "b": b.id} | comparison_fields(found))
    else:
        print("\n".join(comparison_lines(a, b, found)))
    sys.exit(0 if found.equal else 1)


def stop(options: argparse.Namespace) -> None:
    """Stop a job."""
    with Client(options.server) as client:
        print(_summary(client.stop(options.id)))


def pause(options: argparse.Namespace) -> None:
    """Pause a job."""
    with Client(options.server) as client:
        print(_summary(client.pause(options.id)))


def resume(options: argparse.Namespace) -> None:
    """Resume a job."""
    with Client(options.server) as client:
        print(_summary(client.resume(options.id)))


def delete(options: argparse.Namespace) -> None:
    """Delete a job."""
    with Client(options.server) as client:
        freed = client.delete(options.id)
    print(f"deleted; {freed:,} bytes of disk are free again")


def download(options: argparse.Namespace) -> None:
    """Save a job's model."""
    with Client(options.server) as client:
        job = client.get(options.id)
        path = job.download(options.output, which="best" if options.best else "last")
    print(f"saved {path}: {Model.load(path)!r}")


def cluster(options: argparse.Namespace) -> None:
    """Show the cluster."""
    with Client(options.server) as client:
        found = client.cluster()
    if options.format == "json":
        print_json(message_fields(found))
        return
    workers, cpus = counted(found.worker_slots, "worker"), counted(found.cpus_per_worker, "CPU")
    slots = f"room for {workers} of {cpus} on {counted(found.nodes, 'machine')}"
    print_fields(
        [
            ("server", f"{options.server}, version {found.server_version}"),
            ("fleet", slots if found.fleet_attached else "none is attached"),
            ("workers", len(found.workers)),
            ("queue", counted(found.queue_depth, "job")),
        ]
    )
    if found.workers:
        rows = [(worker.worker_id, worker.job_id, worker.host, worker.num_cpus) for worker in found.workers]
        print_table(("worker", "job", "host", "cpus"), rows)


def health(options: argparse.Namespace) -> None:
    """Ask for the server's health."""
    with Client(options.server) as client:
        serving = client.health()
    if options.format == "json":
        print_json({"server": options.server, "serving": serving})
    else:
        print(f"{options.server} is {'serving' if serving else 'not serving'}")
    if not serving:
        sys.exit(3)


def predict(options: argparse.Namespace) -> None:
    """Predict from a CSV file."""
    from lockstep.predicting import read_features, to_csv

    model = Model.load(options.model)
    predicted = model.predict(read_features(model, options.data))
    text = to_json(predicted.tolist()) + "\n" if options.format == "json" else to_csv(predicted)
    if options.output is None:
        sys.stdout.write(text)
    else:
        options.output.write_text(text)
        print(f"{len(predicted)} predictions in {options.output}", file=sys.stderr)


def validate(options: argparse.Namespace) -> None:
    """Check a job file."""
    spec = submission.Submission(_read_spec(options)).spec
    if options.format == "json":
        print_json(to_dict(spec))
    else:
        print(f"{options.file} is a valid job")


def _read_spec(options: argparse.Namespace) -> job_pb2.JobSpec:
    """Return the job in the file, with what --set changes."""
    try:
        values = load_file(options.file)
        for assignment in options.set:
            values = override(values, assignment)
    except SpecError as error:
        raise InvalidSpecError(error.violations) from None
    return submission.read(values, directory=options.file.parent)


def _follow(client: Client, job: Job, options: argparse.Namespace) -> None:
    if options.format == "text":
        job.wait(progress=True, timeout_s=options.timeout)
        print_status(job)
        return
    with says_how_to_come_back(job):
        for update in client.watch(job.id, timeout_s=options.timeout):
            events = [event_fields(event) for event in update.events]
            print_json({"job": job_fields(update.job), "events": events, "notice": update.notice})
            job = update.job
    if job.state is JobState.FAILED:
        raise JobFailedError(job)


def _row(job: Job) -> tuple[Any, ...]:
    loss = "" if job.loss is None else f"{job.loss:.4g}"
    phase = "" if job.phase == job.state else job.phase
    return short_id(job), job.name, job.state, f"{job.step}/{job.num_steps}", loss, job.num_workers, phase


def _summary(job: Job) -> str:
    """Say in a line what has become of a job."""
    state: str = job.state
    if job.state.ended or job.state is JobState.PAUSED:
        state += f" at step {job.step}" + (f": {job.message}" if job.message else "")
    elif job.phase and job.phase != job.state:
        state += f": {job.phase}"
    return f"job {job.id} ({job.name}) {state}"
