import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import load_file

from lockstep_proto.layout import Layout
from lockstep_proto.spec import read_spec
from lockstep_server import checkpoints, tensor_files
from lockstep_server.checkpoints import Checkpoint, Origin
from lockstep_server.tensor_files import TensorFileError

SPEC = read_spec(
    {
        "network": {"inputs": 3, "layers": [{"units": 4}, {"units": 2}]},
        "loss": "norm",
        "batch_size": 8,
        "epochs": 1,
    }
)
SIZE = Layout.from_spec(SPEC).num_parameters


def vector(seed):
    return np.random.default_rng(seed).normal(size=SIZE).astype(np.float32)


def make(best=True):
    return Checkpoint(
        version=12,
        epoch=3,
        step_in_epoch=2,
        parameters=vector(0),
        optimizer_state={"m": vector(1), "s": vector(2)},
        num_updates=14,
        best=vector(3) if best else None,
        progress={"epoch": 3, "best_validation_loss": None, "epoch_loss": 0.1},
    )


def write(path, spec, checkpoint):
    origin = Origin(job_id="ab12", spec=spec, data_fingerprint="d", validation_fingerprint="v")
    checkpoints.write(path, origin, checkpoint, "0123")


def same(a, b):
    for name in ("version", "epoch", "step_in_epoch", "num_updates", "progress"):
        assert getattr(a, name) == getattr(b, name)
    assert a.parameters.tobytes() == b.parameters.tobytes()
    assert a.optimizer_state.keys() == b.optimizer_state.keys()
    assert all(values.tobytes() == b.optimizer_state[name].tobytes() for name, values in a.optimizer_state.items())
    assert (a.best is None) == (b.best is None)
    if a.best is not None:
        assert a.best.tobytes() == b.best.tobytes()


@pytest.mark.parametrize("best", [True, False])
def test_a_checkpoint_comes_back_bit_by_bit(tmp_path, best):
    write(tmp_path / "c.safetensors", SPEC, make(best))
    same(checkpoints.read(tmp_path / "c.safetensors"), make(best))
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"], "nothing temporary stays"


@pytest.mark.parametrize("position", [0.3, 0.6, 0.99])
def test_a_flipped_byte_is_noticed(tmp_path, position):
    path = tmp_path / "c.safetensors"
    write(path, SPEC, make())
    content = bytearray(path.read_bytes())
    content[int(len(content) * position)] ^= 1
    path.write_bytes(content)
    with pytest.raises(TensorFileError, match=r"c\.safetensors"):
        checkpoints.read(path)


@pytest.mark.parametrize("size", [0, 5, 300, -1])
def test_a_torn_file_is_refused_by_name(tmp_path, size):
    path = tmp_path / "c.safetensors"
    write(path, SPEC, make())
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(TensorFileError, match=r"c\.safetensors"):
        checkpoints.read(path)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    write(path, SPEC, make())
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(path, SPEC, make(best=False))
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_arrays_that_are_not_contiguous_are_saved_as_they_read(tmp_path):
    every_other = np.arange(2 * SIZE, dtype=np.float32)[::2]
    checkpoint = Checkpoint(1, 0, 1, every_other, {"v": np.asfortranarray(vector(1).reshape(2, -1))}, 1, None, {})
    write(tmp_path / "c.safetensors", SPEC, checkpoint)
    found = checkpoints.read(tmp_path / "c.safetensors")
    np.testing.assert_array_equal(found.parameters, every_other)
    np.testing.assert_array_equal(found.optimizer_state["v"], vector(1).reshape(2, -1))


def test_a_model_comes_back_and_fits_its_spec_only(tmp_path):
    path = tmp_path / "m.safetensors"
    checkpoints.write_model(path, SPEC, vector(5))
    assert checkpoints.read_model(path, SPEC).tobytes() == vector(5).tobytes()
    other = read_spec(
        {"network": {"inputs": 3, "layers": [{"units": 5}, {"units": 2}]}, "loss": "norm", "batch_size": 8, "epochs": 1}
    )
    with pytest.raises(TensorFileError, match=r"W2 must be float32 \(3, 5\), found float32 \(3, 4\)"):
        checkpoints.read_model(path, other)


def test_a_checkpoint_is_no_model(tmp_path):
    write(tmp_path / "c.safetensors", SPEC, make())
    with pytest.raises(TensorFileError, match=r"not 'lockstep\.model\.v1'"):
        checkpoints.read_model(tmp_path / "c.safetensors", SPEC)


def test_a_checkpoint_says_what_it_is_without_its_tensors(tmp_path):
    path = tmp_path / "c.safetensors"
    checkpoint = make()
    checkpoint.progress["validation_loss"] = 0.25
    write(path, SPEC, checkpoint)
    told = checkpoints.describe(path)
    assert (told.version, told.epoch, told.step_in_epoch) == (12, 3, 2)
    assert (told.validation_loss, told.digest) == (0.25, "0123")
    assert told.origin == Origin(job_id="ab12", spec=SPEC, data_fingerprint="d", validation_fingerprint="v")
    assert told.size_bytes == path.stat().st_size
    write(path, SPEC, make())
    assert checkpoints.describe(path).validation_loss is None


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0{}", b"\x02\0\0\0\0\0\0\0[]"])
def test_what_is_no_checkpoint_is_not_described(tmp_path, content):
    (tmp_path / "c.safetensors").write_bytes(content)
    with pytest.raises(TensorFileError, match=r"c\.safetensors"):
        checkpoints.describe(tmp_path / "c.safetensors")


def test_the_library_reads_a_checkpoint(tmp_path):
    write(tmp_path / "c.safetensors", SPEC, make())
    tensors = load_file(tmp_path / "c.safetensors")
    assert tensors.keys() == {"parameters", "state.m", "state.s", "best"}
    assert tensors["state.s"].tobytes() == vector(2).tobytes()


def test_what_is_said_of_a_checkpoint_is_guarded_too(tmp_path):
    path = tmp_path / "c.safetensors"
    write(path, SPEC, make())
    path.write_bytes(path.read_bytes().replace(b'step_in_epoch\\": 2', b'step_in_epoch\\": 1'))
    with pytest.raises(TensorFileError, match="the checksum does not fit"):
        checkpoints.read(path)


def test_a_large_file_is_written_without_a_copy_of_it(tmp_path):
    large = Checkpoint(1, 0, 1, np.ones(4_000_000, np.float32), {}, 1, None, {})
    tracemalloc.start()
    write(tmp_path / "c.safetensors", SPEC, large)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < large.parameters.nbytes / 10
