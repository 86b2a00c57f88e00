"""The fixed binary tree along which the values of a job's shards are summed.

A node is a range [lo, hi) of shards; [0, V) is the root, [i, i + 1) the leaf of shard i. [lo, hi) splits at lo + the
largest power of two below hi − lo, and its value is value(left) + value(right), whoever adds. So the sum of V
shards has the same bits for any number of workers.
"""

from functools import lru_cache

Node = tuple[int, int]


def split(lo: int, hi: int) -> int:
    """Return where the node [lo, hi), which has at least two shards, splits."""
    return lo + (1 << ((hi - lo - 1).bit_length() - 1))


@lru_cache(maxsize=65536)  # asked for every chunk that arrives
def path(lo: int, hi: int, num_shards: int) -> tuple[Node, ...] | None:
    """Return the nodes from the root down to [lo, hi), or None if the tree of `num_shards` has no such node."""
    if not 0 <= lo < hi <= num_shards:
        return None
    node = (0, num_shards)
    nodes = [node]
    while node != (lo, hi):
        if node[1] - node[0] == 1:
            return None
        middle = split(*node)
        node = (node[0], middle) if hi <= middle else (middle, node[1])
        if not node[0] <= lo < hi <= node[1]:
            return None
        nodes.append(node)
    return tuple(nodes)


def is_node(lo: int, hi: int, num_shards: int) -> bool:
    """Whether [lo, hi) belongs to the tree of `num_shards`."""
    return path(lo, hi, num_shards) is not None


def parent(node: Node, num_shards: int) -> Node:
    """Return the parent of a node other than the root."""
    nodes = path(*node, num_shards)
    if nodes is None or len(nodes) < 2:
        raise ValueError(f"{node} has no parent in the tree of {num_shards} shards")
    return nodes[-2]


def top_nodes(lo: int, hi: int, num_shards: int) -> list[Node]:
    """Return the fewest nodes that make up the shards [lo, hi), from left to right."""
    found: list[Node] = []

    def descend(node: Node) -> None:
        if hi <= node[0] or node[1] <= lo:
            return
        if lo <= node[0] and node[1] <= hi:
            found.append(node)
            return
        middle = split(*node)
        descend((node[0], middle))
        descend((middle, node[1]))

    if lo < hi:
        descend((0, num_shards))
    return found
