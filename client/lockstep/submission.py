"""What is submitted: the spec, the files it names, arrays and a model, checked before anything is sent."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc

from lockstep import arrays, uploads
from lockstep.calls import Deadline
from lockstep.errors import InvalidModelError, InvalidSpecError
from lockstep.model import Model
from lockstep_proto.layout import Layout
from lockstep_proto.rules import UPLOAD_ID
from lockstep_proto.spec import SpecError, Violation, check, read_spec
from lockstep_proto.v1 import job_pb2

Spec = Mapping[str, Any] | str | Path | job_pb2.JobSpec


class Submission:
    """A checked spec, and what has to be on the server for it.

    Raises InvalidSpecError with all violations, files that are not there included; InvalidDataError for arrays,
    InvalidModelError for a model of another shape.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        data: Any = None,
        validation: Any = None,
        initial_model: "Model | str | Path | None" = None,
    ) -> None:
        arrays_follow = data is not None or validation is not None
        self.spec = read(spec, require_data=not arrays_follow)
        self._contents: dict[str, bytes] = {}
        self._enter_arrays(data=data, validation=validation)
        self._enter_model(initial_model)
        violations = check(self.spec) + [found for file in _files(self.spec) if (found := file.violation)]
        if violations:
            raise InvalidSpecError(violations)
        for file in _files(self.spec):
            if file.is_model:
                _check_shape(Model.load(file.name), self.spec, file.name)

    def send(self, channel: grpc.Channel, deadline: Deadline) -> job_pb2.JobSpec:
        """Send what the server does not have; return the spec with the ids of the uploads. Raises RpcError."""
        for upload_id, content in self._contents.items():
            uploads.send_bytes(channel, upload_id, content, deadline)
        sent = job_pb2.JobSpec()
        sent.CopyFrom(self.spec)
        for file in _files(sent):
            file.name = uploads.send_file(channel, Path(file.name), deadline)
        return sent

    def _enter_arrays(self, **given: Any) -> None:
        """Arrays take the place of the data that the spec names."""
        for name, value in given.items():
            if value is None:
                continue
            content, weighted = arrays.pack(value, self.spec, name, training=name == "data")
            upload_id = self._keep(content, ".npz")
            weight = "weight" if weighted else ""
            data = job_pb2.Data(upload=upload_id, target=["y"], features=["x"], weight=weight)
            getattr(self.spec, name).CopyFrom(data)

    def _enter_model(self, model: "Model | str | Path | None") -> None:
        if isinstance(model, Model):
            _check_shape(model, self.spec, "initial_model")
            self._start_from(self._keep(model.to_bytes(), ".safetensors"))
        elif model is not None:
            self._start_from(str(Path(model).expanduser().absolute()))

    def _start_from(self, model: str) -> None:
        """A given model takes the place of whatever the spec would begin with."""
        self.spec.ClearField("initial_parameters")
        self.spec.start_from.CopyFrom(job_pb2.StartFrom(model=model))

    def _keep(self, content: bytes, suffix: str) -> str:
        upload_id = hashlib.sha256(content).hexdigest() + suffix
        self._contents[upload_id] = content
        return upload_id


def read(spec: Spec, *, require_data: bool = True, directory: Path | None = None) -> job_pb2.JobSpec:
    """Return the spec with its defaults, file names made absolute. Raises InvalidSpecError with all violations.

    File names are relative to `directory`, by default that of the job file and else the working directory.
    """
    try:
        message = read_spec(spec, require_data=require_data)
    except SpecError as error:
        raise InvalidSpecError(error.violations) from None
    beside = directory or (Path(spec).parent if isinstance(spec, str | Path) else Path())
    for file in _files(message):
        file.name = str((beside / os.path.expanduser(file.name)).absolute())
    return message


def _check_shape(model: Model, spec: job_pb2.JobSpec, name: str) -> None:
    has, wanted = (Layout.from_spec(of) for of in (model.spec, spec))
    if has != wanted:
        raise InvalidModelError(f"{name}: is a model of {_shape(has)}, the network of the job is {_shape(wanted)}")


def _shape(layout: Layout) -> str:
    return f"{'-'.join(map(str, layout.sizes))} {layout.dtype}"


class _File:
    """A field of a spec that names a file of this machine."""

    def __init__(self, path: str, message: Any, field: str, suffixes: tuple[str, ...]) -> None:
        self._path, self._message, self._field, self._suffixes = path, message, field, suffixes

    @property
    def is_model(self) -> bool:
        return self._suffixes == uploads.MODEL_SUFFIXES

    @property
    def name(self) -> str:
        name: str = getattr(self._message, self._field)
        return name

    @name.setter
    def name(self, name: str) -> None:
        setattr(self._message, self._field, name)

    @property
    def violation(self) -> Violation | None:
        problem = uploads.problem(Path(self.name), self._suffixes)
        return Violation(self._path, f"{self.name}: {problem}") if problem else None


def _files(spec: job_pb2.JobSpec) -> Iterator[_File]:
    """Yield the fields that name files, not uploads."""
    for path, message, field, suffixes in (
        ("data.upload", spec.data, "upload", uploads.DATA_SUFFIXES),
        ("validation.upload", spec.validation, "upload", uploads.DATA_SUFFIXES),
        ("start_from.model", spec.start_from, "model", uploads.MODEL_SUFFIXES),
    ):
        name = getattr(message, field)
        if name and not UPLOAD_ID.fullmatch(name):
            yield _File(path, message, field, suffixes)
