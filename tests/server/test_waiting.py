from lockstep_server.waiting import Waiting


def test_waits_add_up_until_there_is_progress():
    waiting = Waiting(0.0)
    assert waiting.spent_s(3.0) == 3.0
    waiting.end(3.0)
    assert not waiting.waits
    assert waiting.spent_s(10.0) == 0.0
    waiting.begin(10.0)
    waiting.begin(11.0)
    assert waiting.spent_s(12.0) == 5.0, "a worker that came and went has put off nothing"
    waiting.end(12.0)
    waiting.progress()
    waiting.begin(20.0)
    assert waiting.spent_s(21.0) == 1.0
    waiting.stop()
    assert waiting.spent_s(99.0) == 0.0
