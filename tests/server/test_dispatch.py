"""What a worker is sent with its work, by what it has got already."""

import numpy as np
import pytest

from lockstep_proto.codec import ParameterChunk
from lockstep_proto.spec import read_spec
from lockstep_server.crew import WorkerView
from lockstep_server.dispatch import Dispatch
from lockstep_server.handout import Gift
from lockstep_server.progress import Progress
from lockstep_server.rounds import EVALUATE, STEP
from lockstep_server.update import ParameterUpdate
from tests.messages import read

NETWORK = {"inputs": 2, "layers": [{"units": 1}]}


def dispatch(wire_dtype):
    fields = {"network": NETWORK, "loss": "norm", "batch_size": 8, "epochs": 1, "wire_dtype": wire_dtype}
    update = ParameterUpdate(
        read_spec(fields), attempt=1, version=4, parameters=np.ones(3, np.float32), state=None, num_updates=0
    )
    return Dispatch(1, update, Progress())


def sent(made, worker, kind):
    """The bytes of each chunk of parameters, or the kind of work, in order."""
    messages = [read(send.message) for send in made.hand_over([Gift(worker, [(0, 1)])], kind)]
    return [len(one.data) if isinstance(one, ParameterChunk) else one.work.kind for one in messages]


@pytest.fixture
def worker():
    return WorkerView("w", 1, 0.0)


def test_a_newcomer_gets_the_version_whole_and_after_that_only_work(worker):
    made = dispatch("float32")
    assert sent(made, worker, EVALUATE) == [12, EVALUATE]
    assert sent(made, worker, EVALUATE) == [EVALUATE]
    assert sent(made, worker, STEP) == [STEP]


def test_where_bfloat16_travels_an_evaluation_takes_the_master_too_once(worker):
    made = dispatch("bfloat16")
    assert sent(made, worker, STEP) == [6, STEP]
    assert sent(made, worker, EVALUATE) == [12, EVALUATE]
    assert sent(made, worker, EVALUATE) == [EVALUATE]
    assert sent(made, worker, STEP) == [STEP]


def test_a_newcomer_to_an_evaluation_gets_both(worker):
    assert sent(dispatch("bfloat16"), worker, EVALUATE) == [6, 12, EVALUATE]


def test_a_worker_whose_messages_were_thrown_away_gets_the_master_again(worker):
    made = dispatch("bfloat16")
    assert sent(made, worker, EVALUATE) == [6, 12, EVALUATE]
    worker.synced = False
    assert sent(made, worker, EVALUATE) == [6, 12, EVALUATE]


def test_the_master_of_another_version_is_of_no_use(worker):
    made = dispatch("bfloat16")
    worker.synced, worker.master_version = True, 3
    assert sent(made, worker, EVALUATE) == [12, EVALUATE]
