"""`lockstep-fleet`: the Ray driver that starts and stops workers for the server's jobs."""

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from lockstep_worker.fleet_driver import FleetDriver

END_S = 8.0  # for the end of the workers and of a local Ray; after that this process ends whatever is left
# Set before Ray is loaded, so that it and its workers begin with them: one BLAS thread, and a malloc that keeps its
# memory. Ray would try a task that runs out of memory again for ever, would wait long for a stopped process to end, and
# would end one that has loaded data a second later, so that the next job has to wait for another: it has so many
# minutes, as spares have.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_task_oom_retries": "3",
    "RAY_kill_worker_timeout_milliseconds": "500",
    "RAY_idle_worker_killing_time_threshold_ms": "300000",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "67108864",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the fleet until a signal or its parent's end; exits with 1 when Ray is gone or another fleet came."""
    options = _parser().parse_args(arguments)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True)
    _start_ray(options)
    from lockstep_worker.fleet_driver import FleetDriver, RayGoneError

    try:
        driver = FleetDriver(
            options.server,
            cpus_per_worker=options.cpus_per_worker,
            data_roots=options.data_root,
            grace_s=options.grace_s,
        )
        _stop_in_time(driver, with_parent=options.exit_with_parent)
        print("lockstep-fleet is ready", flush=True)
        stopped = driver.run()
    except RayGoneError as error:
        _give_up(f"the Ray cluster at {options.ray_address} is gone: {error}")
    except Exception as error:  # its end is noticed, and it is started again; a fleet that does nothing is not
        logging.exception("a defect ends the fleet")
        _give_up(f"a defect in Lockstep: {error!r}")
    import ray

    ray.shutdown()
    if not stopped:
        sys.exit(f"lockstep-fleet: another fleet has attached to the server at {options.server}")


def _start_ray(options: argparse.Namespace) -> None:
    import ray

    try:
        if options.ray_address == "local":
            ray.init(address="local", num_cpus=options.num_cpus, include_dashboard=False, log_to_driver=False)
        else:
            ray.init(address=options.ray_address, log_to_driver=False)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        _give_up(f"no Ray cluster at {options.ray_address}: {error}")


def _stop_in_time(driver: "FleetDriver", *, with_parent: bool) -> None:
    """Have signals and, if asked for, the end of standard input stop the driver."""

    def stop(*_: object) -> None:
        last_resort = threading.Timer(END_S, os._exit, [0])  # Ray may be gone, and never answer
        last_resort.daemon = True
        last_resort.start()
        driver.stop()

    for number in (signal.SIGTERM, signal.SIGINT):  # after ray.init, which sets its own
        signal.signal(number, stop)

    def wait_for_parent() -> None:
        while os.read(0, 4096):
            pass
        stop()

    if with_parent:
        threading.Thread(target=wait_for_parent, name="parent", daemon=True).start()


def _give_up(message: str) -> NoReturn:
    """End at once: with a Ray that is gone, an orderly shutdown would wait for it."""
    print(f"lockstep-fleet: {message}", file=sys.stderr, flush=True)
    os._exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lockstep-fleet", description=__doc__)
    parser.add_argument("--server", default="127.0.0.1:50051", help="the server's host:port (default %(default)s)")
    parser.add_argument("--ray-address", default="auto", help='of the Ray cluster; "local" starts one (default auto)')
    parser.add_argument("--num-cpus", type=_positive, help="CPUs of a local Ray cluster")
    parser.add_argument("--cpus-per-worker", type=_positive, default=1, help="CPUs of each worker (default 1)")
    parser.add_argument(
        "--data-root", action="append", default=[], help="folder below which data.path is read; repeatable"
    )
    parser.add_argument("--grace-s", type=float, default=5.0, help="time a worker has to leave (default %(default)s)")
    parser.add_argument("--exit-with-parent", action="store_true", help="end when standard input does")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


if __name__ == "__main__":
    main()
