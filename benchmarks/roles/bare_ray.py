"""Ray alone: how long it takes to start, and an actor to answer. Run as a process; prints both in seconds."""

import json
import time
from typing import Any


def main() -> None:
    """Measure once."""
    begun = time.perf_counter()
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    started = time.perf_counter()

    class Answerer:
        def answer(self) -> bool:
            return True

    actor_class: Any = ray.remote(Answerer)

    def start_one() -> float:
        asked = time.perf_counter()
        actor = actor_class.remote()
        assert ray.get(actor.answer.remote())
        took_s = time.perf_counter() - asked
        ray.kill(actor)
        return took_s

    start_one()
    print(json.dumps({"init_s": started - begun, "actor_s": start_one()}), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
