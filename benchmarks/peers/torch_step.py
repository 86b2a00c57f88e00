"""A step in PyTorch. Run as a process with a network's name and, for DDP, a rank and a port; prints milliseconds.

One process has two threads and the whole batch; with DDP (gloo), each of two has one thread and half of the batch.
"""

import itertools
import os
import sys
from collections.abc import Callable

import torch
from torch import distributed, nn

from benchmarks.networks import CASES, Case
from benchmarks.peers.timing import ms_a_step, num_steps

NUM_CPUS = 2


def network(case: Case) -> nn.Module:
    """Return the network, without the softmax, which is in the loss."""
    parts: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(case.sizes):
        parts += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def step_of(model: nn.Module, case: Case, num_rows: int) -> Callable[[], object]:
    """Return what makes one step."""
    x, labels = torch.randn(num_rows, case.sizes[0]), torch.randint(case.sizes[-1], (num_rows,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    loss = nn.CrossEntropyLoss()

    def step() -> None:
        optimizer.zero_grad()
        loss(model(x), labels).backward()
        optimizer.step()

    return step


def alone(case: Case) -> float:
    """Measure one process."""
    torch.set_num_threads(NUM_CPUS)
    step = step_of(network(case), case, case.batch)
    return ms_a_step(step, num_steps(step))


def with_others(case: Case, rank: int, port: str) -> float:
    """Measure one of two processes; both make as many steps."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    distributed.init_process_group("gloo", rank=rank, world_size=NUM_CPUS)
    model = nn.parallel.DistributedDataParallel(network(case))
    step = step_of(model, case, case.batch // NUM_CPUS)
    num = torch.tensor(num_steps(step))
    distributed.broadcast(num, src=0)
    found = ms_a_step(step, int(num))
    distributed.destroy_process_group()
    return found


def main() -> None:
    """Measure once."""
    case, rest = CASES[sys.argv[1]], sys.argv[2:]
    print(with_others(case, int(rest[0]), rest[1]) if rest else alone(case), flush=True)


if __name__ == "__main__":
    main()
