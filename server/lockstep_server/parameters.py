"""The parameters of one version: the encoded messages that carry them, shared by whoever sends or keeps them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lockstep_proto import codec
from lockstep_proto.layout import Layout, digest_of_parts

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Parameters:
    """One message a chunk, in order. What reads them may run in any thread."""

    layout: Layout
    messages: Sequence[bytes]

    def chunk(self, chunk_index: int) -> Array:
        """Return one chunk of the flat vector, as a view that cannot be written."""
        return np.frombuffer(self.messages[chunk_index], self.layout.dtype, offset=codec.PARAMETERS_HEADER_BYTES)

    def flat(self) -> Array:
        """Return a copy as one flat vector."""
        return np.concatenate([self.chunk(i) for i in range(len(self.messages))])

    def digest(self) -> str:
        """Return the digest of this model."""
        return digest_of_parts(self.layout, (self.chunk(i) for i in range(len(self.messages))))
