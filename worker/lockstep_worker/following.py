"""What a worker makes of the server's messages: a state machine without I/O and threads.

The worker holds the present version whole and fills the next one chunk by chunk. A Work message says that the next
version is whole, and what to compute from it. A version all of whose chunks lie in one place, in memory that the server
shares, is used there, and let go as soon as there is a newer one and nobody computes from it. Any other is copied to an
array of the worker's own. One that is being computed from is left alone until it is given back, whatever comes in
meanwhile; so there are two such arrays, and a third one where a computation takes longer than the others' step. While
the next version comes in, its first layers can be used already: they are its front.
"""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lockstep_proto import bfloat16
from lockstep_proto.codec import ParameterChunk
from lockstep_proto.layout import Chunking, Layout
from lockstep_proto.v1 import job_pb2, training_pb2

Array = npt.NDArray[Any]
Range = tuple[int, int]


class ProtocolError(RuntimeError):
    """The server sent what cannot be at this point."""


@dataclass(frozen=True, slots=True)
class Task:
    """Shards to compute from the present version."""

    attempt: int
    version: int
    kind: training_pb2.WorkKind.ValueType
    epoch: int
    step_in_epoch: int
    ranges: tuple[Range, ...]


class Front(NamedTuple):
    """Layers of a version that is not whole yet. Unless the first is among them, they follow on the front before."""

    parameters: Array  # flat
    layers: range  # that have come; 0 is layer 2


class Following:
    """The versions of one job's parameters as they come in.

    Where parameters travel as bfloat16, those of steps have two bytes an element, and before an evaluation the master
    of the same version comes with four: they are versions of their own.
    """

    def __init__(self, spec: job_pb2.JobSpec, chunk_elements: int) -> None:
        layout = Layout.from_spec(spec)
        self._dtype = layout.dtype
        self._layer_ends = [part.stop for part in layout.layer_slices]
        self._told = (0, 0)  # of which content there was a front, and how many layers of it
        self._chunking = Chunking(layout.num_parameters, chunk_elements)
        self._steps = _Versions(self._chunking, layout.dtype)
        self._master = _Versions(self._chunking, layout.dtype) if bfloat16.travels(spec) else self._steps
        self._lending = self._steps

    def restart(self) -> None:
        """Begin again as a newcomer, who has no version."""
        self._steps.restart()
        self._master.restart()

    def chunk(self, chunk: ParameterChunk) -> None:
        """Take in a chunk. The first one of another version begins that version.

        Of a chunk in shared memory, `data` is the room of its version, and `place` counts from the room's beginning.
        """
        lo, hi = self._chunking.range(chunk.chunk_index)
        data, place, rounds = chunk.data, chunk.place, self._master is not self._steps
        if place is not None:
            if not rounds and place.offset == lo * self._dtype.itemsize:
                room = np.frombuffer(data, self._dtype, self._chunking.num_parameters)
                if self._steps.share(chunk, room):
                    return
            data = data[place.offset : place.offset + place.num_bytes]
        if rounds and len(data) == (hi - lo) * bfloat16.DTYPE.itemsize:
            bfloat16.unpack(np.frombuffer(data, bfloat16.DTYPE), self._steps.place(chunk))
        else:
            self._master.place(chunk)[...] = np.frombuffer(data, self._dtype)

    def front(self) -> Front | None:
        """Return the layers that have come since this was last asked; None if there are none, or all have."""
        incoming = self._steps.front
        if incoming is None:
            return None
        told = self._told[1] if self._told[0] == self._steps.content else 0
        num_layers = bisect_right(self._layer_ends, self._steps.num_front_elements)
        if num_layers <= told:
            return None
        self._told = self._steps.content, num_layers
        return Front(incoming, range(told, num_layers))

    @property
    def fronted(self) -> bool:
        """Whether the last fronts were of what has become the present version."""
        return self._told[0] == self._steps.present_content

    def work(self, work: training_pb2.Work) -> Task | None:
        """Take in what to do with a version. Return None when that is to wait.

        Raises ProtocolError if the version is not whole.
        """
        self._steps.turn_to(work.version)
        self._of(work.kind).turn_to(work.version)
        if work.kind == training_pb2.WORK_KIND_WAIT:
            return None
        return Task(
            attempt=work.attempt,
            version=work.version,
            kind=work.kind,
            epoch=work.epoch,
            step_in_epoch=work.step_in_epoch,
            ranges=tuple((part.lo, part.hi) for part in work.ranges),
        )

    def parameters(self, kind: training_pb2.WorkKind.ValueType) -> Array:
        """Return the present version's parameters as some kind of work is computed from them."""
        return self._of(kind).present

    def lend(self, kind: training_pb2.WorkKind.ValueType) -> Array:
        """Return the present version's parameters, which stay as they are until they are given back."""
        self._lending = self._of(kind)
        return self._lending.lend()

    def give_back(self) -> None:
        """Take note that nobody computes from what was lent any more."""
        self._lending.give_back()

    def _of(self, kind: training_pb2.WorkKind.ValueType) -> "_Versions":
        return self._master if kind == training_pb2.WORK_KIND_EVALUATE else self._steps


class _Versions:
    """The present version and the next one, each in an array of its own or in shared memory."""

    def __init__(self, chunking: Chunking, dtype: np.dtype[Any]) -> None:
        self._chunking = chunking
        self.present: Array = np.empty(chunking.num_parameters, dtype)  # takes no memory until it is written to
        self._incoming: Array | None = None
        self._spare: list[Array] = []
        self._lent: Array | None = None
        self._incoming_version = -1
        self.content = self.present_content = 0  # another number for all that is written anew
        self.restart()

    def restart(self) -> None:
        self._version = -1
        self._drop_incoming()
        if not self.present.flags.owndata:
            self.present = self._own()

    @property
    def front(self) -> Array | None:
        """The next version, while there is something of it, but not all."""
        return self._incoming if 0 < len(self._arrived) < self._chunking.num_chunks else None

    @property
    def num_front_elements(self) -> int:
        """How many of its elements have come, from the first one on."""
        while self._num_front in self._arrived:
            self._num_front += 1
        return self._num_front * self._chunking.chunk_elements

    def share(self, chunk: ParameterChunk, room: Array) -> bool:
        """Take in a chunk that lies where it belongs in a room, unless not all of its version lies there."""
        self._begin(chunk.version)
        if self._incoming is None:
            self._incoming = room
        elif not np.may_share_memory(self._incoming, room):
            return False
        self._arrive(chunk.chunk_index)
        return True

    def place(self, chunk: ParameterChunk) -> Array:
        """Return where the values of a chunk go; they count as arrived."""
        self._begin(chunk.version)
        if self._incoming is None or not self._incoming.flags.owndata:
            shared, self._incoming = self._incoming, self._own()
            for part in (slice(*self._chunking.range(index)) for index in self._arrived):
                assert shared is not None
                self._incoming[part] = shared[part]
        self._arrive(chunk.chunk_index)
        lo, hi = self._chunking.range(chunk.chunk_index)
        return self._incoming[lo:hi]

    def turn_to(self, version: int) -> None:
        if version == self._version:
            return
        if self._incoming_version != version or len(self._arrived) != self._chunking.num_chunks:
            have = f"{len(self._arrived)} of {self._chunking.num_chunks} chunks of version {self._incoming_version}"
            raise ProtocolError(f"version {version} is not whole: have {have}")
        assert self._incoming is not None
        former, self.present, self._incoming = self.present, self._incoming, None
        self._version, self.present_content = version, self.content
        self._drop_incoming()
        if former is not self._lent:
            self._done_with(former)

    def lend(self) -> Array:
        assert self._lent is None
        self._lent = self.present
        return self._lent

    def give_back(self) -> None:
        lent, self._lent = self._lent, None
        if lent is not None and lent is not self.present:
            self._done_with(lent)

    def _begin(self, version: int) -> None:
        if version != self._incoming_version:
            self._drop_incoming()
            self._incoming_version = version
            self.content += 1

    def _arrive(self, chunk_index: int) -> None:
        if chunk_index in self._arrived:
            self.content += 1
        self._arrived.add(chunk_index)

    def _drop_incoming(self) -> None:
        if self._incoming is not None:
            self._done_with(self._incoming)
        self._incoming = None
        self._incoming_version = -1
        self._arrived: set[int] = set()
        self._num_front = 0  # chunks

    def _own(self) -> Array:
        return self._spare.pop() if self._spare else np.empty(self._chunking.num_parameters, self.present.dtype)

    def _done_with(self, array: Array) -> None:
        """Keep an array of one's own for another version; shared memory is let go."""
        if array.flags.owndata:
            self._spare.append(array)
