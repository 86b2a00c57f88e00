"""How the shards of a task are shared out among a worker's threads."""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from threading import Lock
from typing import Generic, NamedTuple, TypeVar

from lockstep_proto import tree
from lockstep_proto.tree import Node
from lockstep_worker import stacking

Item = TypeVar("Item")
SMALL_MULTIPLICATIONS = 10_000_000  # 0.2 ms of one core: what two threads lose that fight for the GIL


class Parts(NamedTuple):
    """The nodes of a step that are sent, those that each thread computes first, and those left to whoever is free."""

    tops: tuple[Node, ...]
    firsts: tuple[Node, ...]
    others: tuple[Node, ...]


@lru_cache(maxsize=1024)
def parts(
    ranges: tuple[Node, ...], num_shards: int, rows_per_shard: int | None, num_parameters: int, num_cpus: int
) -> Parts:
    """Cut the shards of `ranges` into nodes: at most a thread's part, and few enough rows to be stacked.

    A small step is computed in one thread: others would take longer to begin than to compute their part.
    """
    tops = tuple(node for lo, hi in ranges for node in tree.top_nodes(lo, hi, num_shards))
    num_mine, num_threads, most = sum(hi - lo for lo, hi in ranges), num_cpus, 1
    if rows_per_shard is not None:
        if 3 * num_mine * rows_per_shard * num_parameters <= SMALL_MULTIPLICATIONS:
            num_threads = 1
        most = max(1, min(stacking.MOST_ROWS // rows_per_shard, -(-num_mine // num_threads)))
    nodes = tuple(part for node in tops for part in _cut(node, most))
    return Parts(tops, nodes[:num_threads], nodes[num_threads:])


def _cut(node: Node, most: int) -> list[Node]:
    """Cut a node into nodes of `most` shards at most."""
    if node[1] - node[0] <= most:
        return [node]
    middle = tree.split(*node)
    return [*_cut((node[0], middle), most), *_cut((middle, node[1]), most)]


class Supply(Generic[Item]):
    """Gives each shard, or node, to one of several threads, until the task is superseded."""

    def __init__(self, items: Iterable[Item], superseded: Callable[[], bool]) -> None:
        self._items = iter(items)
        self._superseded = superseded
        self._lock = Lock()

    def __iter__(self) -> Iterator[Item]:
        """Return itself: all threads go through the same one."""
        return self

    def __next__(self) -> Item:
        """Return the next one that nobody has."""
        if self._superseded():
            raise StopIteration
        with self._lock:
            return next(self._items)

    def after(self, first: Item) -> Iterator[Item]:
        """Give a thread the one that is its own, and then what is left."""
        if not self._superseded():
            yield first
            yield from self
