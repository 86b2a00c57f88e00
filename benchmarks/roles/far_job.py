"""Trains at the server's end of a link, with workers at the other end. Run as a process.

Prints the milliseconds of a step, and those of CPU that its processes take for one.
"""

import argparse
import contextlib
import dataclasses
import json

import lockstep
from benchmarks.networks import CASES
from benchmarks.processes import Server, end, launch, line_of
from benchmarks.spent import watch
from benchmarks.stand_in import StandIn
from benchmarks.step import ms_a_step
from lockstep_proto import channels

NUM_WORKERS = 2


def main() -> None:
    """Measure once."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--delay-s", type=float, required=True)
    parser.add_argument("--wire-dtype", required=True)
    parser.add_argument("--late", action="store_true", help="send after computing, in one piece")
    parser.add_argument("workers_end", nargs="*", help="the command that runs another one at the workers' end")
    options = parser.parse_args()
    case = dataclasses.replace(CASES[options.case], batch=options.batch, warmup_epochs=1, epochs=options.epochs)
    module = "benchmarks.roles.whole_server" if options.late else "lockstep_server.main"
    with (
        Server(module=module, host=options.host, shares_memory=False) as server,
        StandIn(server.address, worker_slots=NUM_WORKERS, num_rows=case.num_rows),
        lockstep.Client(server.address) as client,
        contextlib.ExitStack() as stack,
    ):
        host, exchange_port = channels.exchange_address(server.address)  # all that workers need
        relay = launch(
            "benchmarks.roles.relay",
            "--target",
            f"{host}:{exchange_port}",
            "--delay-s",
            options.delay_s,
            prefix=options.workers_end,
        )
        stack.callback(end, relay)
        near = f"127.0.0.1:{int(line_of(relay)) - 1}"
        spec = case.spec(workers=NUM_WORKERS, shards=NUM_WORKERS, data="none.npz")
        job = client.submit(spec | {"wire_dtype": options.wire_dtype})
        data = [
            "--rows-per-shard",
            case.num_rows // NUM_WORKERS,
            "--inputs",
            case.sizes[0],
            "--outputs",
            case.sizes[-1],
        ]
        processes = {"server": [server.pid], "relay": [relay.pid], "workers": list[int]()}
        for i in range(NUM_WORKERS):
            place = ["--server", near, "--job", job.id, "--worker", f"w{i}", "--cpus", 1]
            late = ["--late"] if options.late else []
            worker = launch("benchmarks.roles.worker", *place, *data, *late, prefix=options.workers_end)
            stack.callback(end, worker)
            processes["workers"].append(worker.pid)
        spent = watch(client.watch(job.id), case, processes)
        print(json.dumps({"step_ms": ms_a_step(job.wait(), case), "spent": dataclasses.asdict(spent)}))


if __name__ == "__main__":
    main()
