"""A trained network: predicts, tells its parameters, is saved and loaded."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lockstep.errors import InvalidModelError
from lockstep_proto.layout import Layout, digest
from lockstep_proto.model_file import encode
from lockstep_proto.v1 import job_pb2

if TYPE_CHECKING:
    from lockstep_worker.network import Network

Array = npt.NDArray[Any]
FORMAT = "lockstep.model.v1"


class Model:
    """The parameters of one version, with the spec they were trained by.

    On disk it is a safetensors file with the tensors W2, b2, W3, b3, ... (layer numbers of the text).
    """

    def __init__(self, spec: job_pb2.JobSpec, flat: Array) -> None:
        self.spec = spec
        self._layout = Layout.from_spec(spec)
        self._flat = np.array(flat, self._layout.dtype)
        self._flat.flags.writeable = False
        self._views = self._layout.views(self._flat)
        self._network: Network | None = None

    @property
    def weights(self) -> list[Array]:
        """W^l of shape (n_{l-1}, n_l), for l = 2..L; read-only."""
        return [weights for weights, _ in self._views]

    @property
    def biases(self) -> list[Array]:
        """b^l of shape (n_l,), for l = 2..L; read-only."""
        return [biases for _, biases in self._views]

    @property
    def digest(self) -> str:
        """SHA-256 of layout and parameters, in hexadecimal."""
        return digest(self._layout, self._flat)

    def outputs(self, x: Any) -> Array:
        """Return ŷ of shape (N, n_L) for x of shape (N, n_1)."""
        if self._network is None:
            from lockstep_worker.network import Network

            self._network = Network.from_spec(self.spec)
        return self._network.predict(self._views, np.asarray(x.to_numpy() if hasattr(x, "to_numpy") else x))

    def predict(self, x: Any) -> Array:
        """Return classes, shape (N,), of a classifier; values, shape (N,) or (N, n_L), of a regression.

        A network with several sigmoid outputs and binary_cross_entropy gives 0 or 1 for each, shape (N, n_L).
        """
        z = self.outputs(x)
        if self._is_softmax:
            classes: Array = z.argmax(axis=1)
            return classes
        if self._is_binary:
            z = (z >= 0.5).astype(np.int64)
        return z[:, 0] if z.shape[1] == 1 else z

    def predict_proba(self, x: Any) -> Array:
        """Return the probability of each class, shape (N, classes). Raises TypeError for a regression."""
        if not self._is_softmax and not self._is_binary:
            raise TypeError("predict_proba needs a classifier: softmax, or sigmoid with binary_cross_entropy")
        z = self.outputs(x)
        return np.hstack([1 - z, z]) if self._is_binary and z.shape[1] == 1 else z

    def score(self, x: Any, y: Any) -> float:
        """Return the accuracy of a classifier, or R² (the coefficient of determination) of a regression."""
        predicted = self.predict(x)
        y = np.asarray(y.to_numpy() if hasattr(y, "to_numpy") else y)
        if self._is_softmax and y.ndim == 2 and y.shape[1] == self._layout.sizes[-1]:
            y = y.argmax(axis=1)
        if y.size != predicted.size:
            raise ValueError(f"y must have shape {predicted.shape}, got {y.shape}")
        y = y.reshape(predicted.shape)
        if self._is_softmax or self._is_binary:
            return float(np.mean(predicted == y))
        y = y.astype(np.float64)
        residual, total = np.sum((y - predicted) ** 2), np.sum((y - y.mean(axis=0)) ** 2)
        if total == 0.0:
            return float(residual == 0.0)
        return float(1.0 - residual / total)

    def save(self, path: "str | Path") -> Path:
        """Write the model to a safetensors file. Raises OSError."""
        Path(path).write_bytes(self.to_bytes())
        return Path(path)

    def to_bytes(self) -> bytes:
        """Return the content of the safetensors file that `save` writes: equal models give equal bytes."""
        from google.protobuf import json_format

        tensors: dict[str, Array] = {}
        for l, (weights, biases) in enumerate(self._views, start=2):
            tensors |= {f"W{l}": weights, f"b{l}": biases}
        spec = json_format.MessageToJson(self.spec, preserving_proto_field_name=True, indent=None)
        return b"".join(encode(tensors, {"format": FORMAT, "spec": spec, "digest": self.digest}))

    @classmethod
    def load(cls, path: "str | Path") -> "Model":
        """Read a model. Raises InvalidModelError for a file that is none or is damaged, FileNotFoundError, OSError."""
        from safetensors import SafetensorError, safe_open

        if not Path(path).exists():
            raise FileNotFoundError(f"{path}: there is no such file")
        if Path(path).is_dir():
            raise IsADirectoryError(f"{path} is a directory, not a model")
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        except SafetensorError as error:
            raise InvalidModelError(f"{path}: is no whole safetensors file: {error}") from None
        if metadata.get("format") != FORMAT:
            raise InvalidModelError(f"{path}: is no Lockstep model")
        spec = _read_spec(metadata, path)
        model = cls(spec, _flatten(tensors, Layout.from_spec(spec), path))
        if model.digest != metadata.get("digest"):
            raise InvalidModelError(f"{path}: its digest does not fit its content: the file is damaged")
        return model

    @property
    def _is_softmax(self) -> bool:
        return self.spec.network.layers[-1].activation == job_pb2.ACTIVATION_SOFTMAX

    @property
    def _is_binary(self) -> bool:
        return self.spec.loss == job_pb2.LOSS_BINARY_CROSS_ENTROPY

    def __repr__(self) -> str:
        return f"<Model {'-'.join(map(str, self._layout.sizes))} {self._layout.dtype} sha256:{self.digest[:12]}>"


def _read_spec(metadata: dict[str, str], path: "str | Path") -> job_pb2.JobSpec:
    from google.protobuf import json_format

    try:
        spec = json_format.Parse(metadata.get("spec", ""), job_pb2.JobSpec())
    except json_format.ParseError as error:
        raise InvalidModelError(f"{path}: its spec is not of this version of Lockstep: {error}") from None
    if not spec.network.layers:
        raise InvalidModelError(f"{path}: its spec has no layers")
    return spec


def _flatten(tensors: dict[str, Array], layout: Layout, path: "str | Path") -> Array:
    parts: list[Array] = []
    for l, (n_in, n_out) in enumerate(itertools.pairwise(layout.sizes), start=2):
        for name, shape in ((f"W{l}", (n_in, n_out)), (f"b{l}", (n_out,))):
            if name not in tensors or (tensors[name].shape, tensors[name].dtype) != (shape, layout.dtype):
                raise InvalidModelError(f"{path}: must have {name} of shape {shape} and type {layout.dtype}")
            parts.append(tensors[name].reshape(-1))
    return np.concatenate(parts)
