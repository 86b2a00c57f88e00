import hashlib
import os
import platform
import queue
import shutil

import numpy as np
import pytest

from lockstep_proto.v1 import service_pb2
from lockstep_worker import loading, uploads
from lockstep_worker.errors import DataError
from lockstep_worker.fingerprint import fingerprint_data, fingerprint_shard
from lockstep_worker.loading import Failure, JobData, Loaded, Loading, Place, Shards, load, outline, parts
from lockstep_worker.ray_errors import DIED
from tests.worker.data_files import WRITERS, job, names_in, table, write_csv, write_npy, write_parquet

WAIT_S = 60.0


def place(spec, root, *, training=True):
    return Place(spec.SerializeToString(), training, "127.0.0.1:1", (str(root),))


def csv_job(path, **fields):
    return job({"path": path} | names_in(".csv"), **fields)


@pytest.mark.parametrize(
    ("num_shards", "num_parts", "ranges"),
    [(8, 1, [(0, 8)]), (8, 2, [(0, 4), (4, 8)]), (7, 3, [(0, 2), (2, 4), (4, 7)]), (3, 3, [(0, 1), (1, 2), (2, 3)])],
)
def test_parts_are_nearly_equal_ranges_of_all_shards(num_shards, num_parts, ranges):
    assert parts(num_shards, num_parts) == ranges


def test_a_task_yields_its_shards_and_then_what_it_found(tmp_path):
    write_csv(tmp_path / "data.csv", table(20))
    where = place(csv_job("data.csv"), tmp_path)
    *shards, report = load(where, outline(where), 0, 4)
    assert [shard.num_rows for shard in shards] == [5, 5, 5, 5]
    assert report == Loaded(20, tuple(map(fingerprint_shard, shards)), has_weight=True)


def test_what_is_wrong_is_a_value_in_place_of_all_that_a_task_yields(tmp_path):
    rows = table(20)
    rows[17, 0] = np.nan
    np.save(tmp_path / "data.npy", rows)
    where = place(job({"path": "data.npy"} | names_in(".npy")), tmp_path)
    found = list(load(where, outline(where), 0, 4))
    words = "data.npy: column '0', data row 18 (the first is 1): the value is nan; remove or fill such rows"
    assert [shard.num_rows for shard in found[:3]] == [5, 5, 5]
    assert found[3:] == [Failure(words, service_pb2.ERROR_TYPE_DATA_INVALID)] * 2


def test_what_can_be_known_before_the_rows_is_a_failure_of_the_outline(tmp_path):
    missing = outline(place(csv_job("no.csv"), tmp_path))
    words = f"no.csv: no such file below the data roots ({tmp_path})"
    assert missing == Failure(words, service_pb2.ERROR_TYPE_DATA_UNAVAILABLE)


def test_a_file_that_another_machine_has_not_is_told_with_that_machine(tmp_path):
    write_csv(tmp_path / "data.csv", table(20))
    where = place(csv_job("data.csv"), tmp_path)
    described = outline(where)
    (tmp_path / "data.csv").unlink()
    words = f"data.csv: no such file below the data roots ({tmp_path}), on the machine {platform.node()}"
    assert list(load(where, described, 0, 4)) == [Failure(words, service_pb2.ERROR_TYPE_DATA_UNAVAILABLE)] * 5


def test_files_are_read_where_this_machine_has_them(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name / "parts").mkdir(parents=True)
        write_csv(tmp_path / name / "parts" / "1.csv", table(20))
    spec = csv_job("parts")
    described = outline(place(spec, tmp_path / "one"))
    shutil.rmtree(tmp_path / "one")
    write_csv(tmp_path / "other" / "parts" / "2.csv", table(30))  # came later, and is none of the data
    *_, report = load(place(spec, tmp_path / "other"), described, 0, 4)
    assert report.num_rows == 20


def test_an_upload_is_named_by_its_part_in_the_job_and_the_start_of_its_id(tmp_path, monkeypatch):
    content = b"a,b,c,label,w\n1,2,x,0,1\n"
    upload_id = hashlib.sha256(content).hexdigest() + ".csv"
    (tmp_path / upload_id).write_bytes(content)
    monkeypatch.setattr(loading, "cache_dir", lambda: tmp_path)
    where = place(job({"upload": upload_id} | names_in(".csv"), shards=1), tmp_path)
    *_, report = load(where, outline(where), 0, 1)
    assert report.message.startswith(f"uploaded training data ({upload_id[:12]}.csv): column 'c', data row 1 ")


def test_validation_data_are_those_of_the_spec(tmp_path):
    write_csv(tmp_path / "training.csv", table(20))
    write_csv(tmp_path / "validation.csv", table(3))
    spec = csv_job("training.csv", validation={"path": "validation.csv"} | names_in(".csv"))
    where = place(spec, tmp_path, training=False)
    *_, report = load(where, outline(where), 0, 4)
    assert report.num_rows == 3


# With Ray


@pytest.fixture(scope="module")
def ray():
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray

    failed: list[Exception] = []  # with its processes, which are ended with this one
    while True:
        try:
            ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
            break
        except Exception as error:  # of 300 starts two failed: some of Ray's processes ended as they began
            failed.append(error)
            if len(failed) == 3:
                raise
    yield ray
    ray.shutdown()


class Loads:
    """Runs a Loading in the test's thread, as the fleet's driver does in its own."""

    def __init__(self, spec, *roots):
        self.events = queue.SimpleQueue()
        self.found = None
        self.loading = Loading(
            spec,
            server="127.0.0.1:1",
            roots=[str(root) for root in roots],
            post=self.events.put,
            done=self.done,
        )

    def done(self, found):
        assert self.found is None
        self.found = found

    def turn(self):
        self.events.get(timeout=WAIT_S)()

    def result(self):
        self.loading.start()
        while self.found is None:
            self.turn()
        return self.found


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("kind", WRITERS)
def test_a_jobs_shards_become_objects_that_hold_all_rows_in_order(ray, tmp_path, kind):
    suffix, write = WRITERS[kind]
    training, validation = table(200), table(5, seed=1)
    write(tmp_path / f"training{suffix}", training)
    write(tmp_path / f"validation{suffix}", validation)
    names = names_in(suffix)
    spec = job({"path": f"training{suffix}"} | names, validation={"path": f"validation{suffix}"} | names, shards=8)
    data = Loads(spec, tmp_path).result()
    assert isinstance(data, JobData), data
    for shards, rows in ((data.training, training), (data.validation, validation)):
        assert shards.num_rows == len(rows)
        assert shards.fingerprint == fingerprint_data(fingerprint_shard(shards.fetch(index)) for index in range(8))
        for index, part in enumerate(np.array_split(rows, 8)):
            shard = shards.fetch(index)
            np.testing.assert_array_equal(shard.x, part[:, :3])
            np.testing.assert_array_equal(shard.y, part[:, 3])
            np.testing.assert_array_equal(shard.weight, part[:, 4])


@pytest.mark.cluster
def test_a_shard_that_ray_had_to_load_anew_must_be_what_it_was(ray, tmp_path):
    write_csv(tmp_path / "data.csv", table(20))
    where = place(csv_job("data.csv"), tmp_path)
    described = outline(where)
    *before, _ = load(where, described, 0, 4)
    write_csv(tmp_path / "data.csv", np.roll(table(20), 1, axis=0))  # of the same size
    *after, _ = load(where, described, 0, 4)
    (tmp_path / "data.csv").unlink()
    gone, *_ = load(where, described, 0, 4)
    shards = Shards([ray.put(value) for value in (before[0], after[1], gone)], list(map(fingerprint_shard, before)), 20)
    assert shards.fetch(0).num_rows == 5
    with pytest.raises(DataError, match="the data changed while the job was under way: shard 1 has") as caught:
        shards.fetch(1)
    assert caught.value.error_type == service_pb2.ERROR_TYPE_DATA_INVALID
    with pytest.raises(DataError, match=r"data\.csv: no such file") as caught:
        shards.fetch(2)
    assert caught.value.error_type == service_pb2.ERROR_TYPE_DATA_UNAVAILABLE


@pytest.mark.cluster
def test_formats_that_can_be_entered_are_loaded_by_several_tasks(ray, tmp_path, monkeypatch):
    started = []
    options = loading._load.options
    monkeypatch.setattr(loading, "_load", SpiedTask(options, started))
    write_parquet(tmp_path / "data.parquet", table(200))
    spec = job({"path": "data.parquet"} | names_in(".parquet"), shards=8)
    data = Loads(spec, tmp_path).result()
    assert isinstance(data, JobData)
    assert data.training.fingerprint == fingerprint_data(fingerprint_shard(data.training.fetch(i)) for i in range(8))
    assert data.validation.fingerprint == ""
    assert [call["num_returns"] for call in started] == [5, 5]
    assert all(call["memory"] > 0 for call in started)


class SpiedTask:
    def __init__(self, options, started):
        self._options = options
        self._started = started

    def options(self, **given):
        self._started.append(given)
        return self._options(**given)


@pytest.mark.cluster
def test_the_first_thing_that_is_wrong_in_the_order_of_the_rows_is_told(ray, tmp_path):
    rows = table(4000)
    rows[30, 1] = rows[3990, 1] = np.inf
    write_npy(tmp_path / "data.npy", rows)
    spec = job({"path": "data.npy"} | names_in(".npy"), shards=8)
    for _ in range(3):
        found = Loads(spec, tmp_path).result()
        words = "data.npy: column '1', data row 31 (the first is 1): the value is inf; remove or fill such rows"
        assert found == Failure(words, service_pb2.ERROR_TYPE_DATA_INVALID)


@pytest.mark.cluster
def test_weights_that_are_all_zero_are_told(ray, tmp_path):
    rows = table(40)
    write_csv(tmp_path / "good.csv", rows)
    rows[:, 4] = 0
    write_csv(tmp_path / "bad.csv", rows)
    names = names_in(".csv")
    for training, validation, what in (("bad", "good", "training"), ("good", "bad", "validation")):
        spec = job({"path": f"{training}.csv"} | names, validation={"path": f"{validation}.csv"} | names)
        words = f"column 'w': all sample weights of the {what} data are 0"
        assert Loads(spec, tmp_path).result() == Failure(words, service_pb2.ERROR_TYPE_DATA_INVALID)


@pytest.mark.cluster
def test_what_is_wrong_with_validation_data_is_told_before_training_data_are_read(ray, tmp_path):
    write_csv(tmp_path / "data.csv", table(40))
    names = names_in(".csv")
    found = Loads(job({"path": "data.csv"} | names, validation={"path": "no.csv"} | names), tmp_path).result()
    assert found.message == f"no.csv: no such file below the data roots ({tmp_path})"


@pytest.mark.cluster
def test_a_defect_in_a_task_is_told_without_a_traceback(ray, tmp_path, monkeypatch):
    def defective(place):
        raise ZeroDivisionError("an accident\nwith more lines")

    monkeypatch.setattr(loading, "_outline", ray.remote(num_cpus=0)(defective))
    found = Loads(csv_job("data.csv"), tmp_path).result()
    words = "the data cannot be loaded: ZeroDivisionError: an accident"
    assert found == Failure(words, service_pb2.ERROR_TYPE_DATA_UNAVAILABLE)


@pytest.mark.cluster
def test_a_loading_process_that_dies_is_tried_again(ray, tmp_path, monkeypatch):
    write_csv(tmp_path / "data.csv", table(40))
    mark = str(tmp_path / "died")

    def die_once(place):
        if not os.path.exists(mark):
            open(mark, "w").close()
            os._exit(1)
        return outline(place)

    monkeypatch.setattr(loading, "_outline", ray.remote(num_cpus=0, max_retries=1)(die_once))
    assert isinstance(Loads(csv_job("data.csv"), tmp_path).result(), JobData)


@pytest.mark.cluster
def test_a_loading_process_that_always_dies_is_told(ray, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "_outline", ray.remote(num_cpus=0, max_retries=0)(lambda place: os._exit(1)))
    found = Loads(csv_job("data.csv"), tmp_path).result()
    assert found.error_type == service_pb2.ERROR_TYPE_DATA_UNAVAILABLE
    assert found.message == f"the data cannot be loaded: {DIED}"


@pytest.mark.cluster
def test_a_loading_that_is_cancelled_says_nothing_more(ray, tmp_path):
    write_csv(tmp_path / "data.csv", table(40))
    loads = Loads(csv_job("data.csv"), tmp_path)
    loads.loading.start()
    loads.loading.cancel()
    loads.turn()
    assert loads.found is None


def test_uploads_of_this_user_are_kept_in_one_place():
    assert uploads.cache_dir().name == f"lockstep-uploads-{os.getuid()}"
