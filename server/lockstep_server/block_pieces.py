"""Where chunks are cut for the update: at the blocks of the norms, which a chunk need not end with."""

from dataclasses import dataclass

from lockstep_proto.layout import Chunking, Layout, clip_slices
from lockstep_server import norms


@dataclass(frozen=True)
class Block:
    """A block of the norms."""

    number: int
    part: slice  # of the flat vector
    weights: list[slice]  # the parts in W^l, counted from its beginning


@dataclass(frozen=True)
class Piece:
    """What of a chunk lies in one block of the norms: that stays in a core's cache while all is done to it."""

    part: slice  # of the flat vector
    in_chunk: slice
    block: Block
    weights: list[slice]  # the parts in W^l, counted from its beginning
    layers: list[tuple[int, slice]]  # the parts in W^l and b^l, and the layers' indices


def pieces_of(layout: Layout, chunking: Chunking) -> list[list[Piece]]:
    """Return the pieces of every chunk, in the order of the flat vector."""
    blocks = _blocks(layout)
    return [_pieces(layout, blocks, *chunking.range(index)) for index in range(chunking.num_chunks)]


def _blocks(layout: Layout) -> list[Block]:
    starts = range(0, layout.num_parameters, norms.BLOCK)
    ranges = [(lo, min(lo + norms.BLOCK, layout.num_parameters)) for lo in starts]
    return [
        Block(number, slice(lo, hi), clip_slices(layout.weight_slices, lo, hi))
        for number, (lo, hi) in enumerate(ranges)
    ]


def _pieces(layout: Layout, blocks: list[Block], lo: int, hi: int) -> list[Piece]:
    pieces = []
    for block in blocks[lo // norms.BLOCK : -(-hi // norms.BLOCK)]:
        a, b = max(block.part.start, lo), min(block.part.stop, hi)
        weights, layers = clip_slices(layout.weight_slices, a, b), _layers(layout, a, b)
        pieces.append(Piece(slice(a, b), slice(a - lo, b - lo), block, weights, layers))
    return pieces


def _layers(layout: Layout, lo: int, hi: int) -> list[tuple[int, slice]]:
    parts = [(layer, clip_slices([part], lo, hi)) for layer, part in enumerate(layout.layer_slices)]
    return [(layer, part) for layer, found in parts for part in found]
