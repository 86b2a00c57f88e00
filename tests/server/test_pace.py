from lockstep_server.pace import LATE_STEPS_S, LONGEST_RETRY_S, RETRY_S, Pace, usual_turn_s


def late(pace, times, *, now=0.0, turn_s=10.0, every_s=LATE_STEPS_S):
    return [pace.took(turn_s, now + i * every_s, late=True) for i in range(times)]


def in_time(pace, times, *, now=0.0):
    return [pace.took(1.0, now + i * LATE_STEPS_S, late=False) for i in range(times)]


def test_the_usual_is_the_lower_median_so_that_the_slower_of_two_is_told_from_the_other():
    fast, slow = Pace(), Pace()
    assert usual_turn_s([fast, slow]) is None
    fast.took(1.0, 0.0, late=False)
    slow.took(10.0, 0.0, late=False)
    assert usual_turn_s([fast, slow]) == 1.0
    assert usual_turn_s([slow, fast, Pace()]) == 1.0


def test_a_pace_is_the_median_of_the_last_turns_so_that_one_outlier_says_nothing():
    pace = Pace()
    for turn_s in (5.0, 1.0, 1.0, 30.0, 1.0):
        pace.took(turn_s, 0.0, late=False)
    assert pace.turn_s == 1.0


def test_a_worker_is_slow_when_it_was_late_three_steps_running_and_not_before():
    pace = Pace()
    assert late(pace, 2) == [False, False]
    pace.took(1.0, 0.0, late=False)
    assert late(pace, 3) == [False, False, True]
    assert pace.slow
    assert pace.turn_s == 10.0, "what it was before says nothing any more"


def test_a_slow_worker_without_shards_is_tried_again_and_each_time_later():
    pace = Pace()
    late(pace, 3)
    assert pace.rests(100.0)
    assert pace.rests(100.0 + 10 * RETRY_S - 0.1), "as many of its turns, of ten seconds each"
    assert not pace.rests(100.0 + 10 * RETRY_S)
    assert late(pace, 1, now=150.0) == [True], "the trial failed"
    assert pace.rests(150.0 + 20 * RETRY_S - 0.1)
    waits = []
    for _ in range(8):
        now = 1000.0
        late(pace, 1, now=now, turn_s=0.1)
        waits.append(next(wait for wait in range(1000) if not pace.rests(now + wait)))
    assert waits[-1] == LONGEST_RETRY_S


def test_a_slow_worker_that_is_in_time_three_steps_running_is_as_any_other():
    pace = Pace()
    late(pace, 3)
    pace.rests(0.0)
    assert in_time(pace, 2, now=60.0) == [False, False]
    late(pace, 1, now=61.0)
    assert in_time(pace, 3, now=120.0) == [False, False, True]
    assert not pace.slow
    assert late(pace, 2) == [False, False]


def test_many_small_steps_within_one_pause_of_a_process_are_no_slowness():
    pace = Pace()
    assert not any(late(pace, 30, every_s=LATE_STEPS_S / 40))
    assert late(pace, 1, now=LATE_STEPS_S) == [True]
