"""Failpoints: their rules, what each action does to a process, and that every point has its place in the code."""

import ast
import dis
import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lockstep_proto import failpoints
from lockstep_proto.failpoints import FailpointError, Rules

POINT, OTHER = "server.file.synced", "worker.send"
HOUSES = [Path(__file__).parents[2] / house for house in ("proto", "server", "worker", "client")]


def acts(rules, hits, point=POINT):
    """At which of so many hits the rules have raised."""
    raised = []
    for i in range(1, hits + 1):
        try:
            rules(point)
        except (OSError, RuntimeError):
            raised.append(i)
    return raised


@pytest.mark.parametrize(
    ("text", "expected"),
    [("=fail", [1]), ("=fail@1", [1]), ("=fail@3", [3]), ("=fail@3+", [3, 4, 5]), ("=defect@1+", [1, 2, 3, 4, 5])],
)
def test_a_rule_acts_at_the_hit_it_names(text, expected):
    assert acts(Rules(POINT + text), 5) == expected


def test_rules_stand_side_by_side_and_other_points_do_nothing():
    rules = Rules(f" {POINT}=fail@2 ; {OTHER}=defect;")
    assert acts(rules, 3, "server.file.begun") == []
    assert acts(rules, 3) == [2]
    assert acts(rules, 3, OTHER) == [1]


@pytest.mark.parametrize(
    ("action", "kind", "number"),
    [("fail", OSError, errno.EIO), ("full", OSError, errno.ENOSPC), ("defect", RuntimeError, None)],
)
def test_what_is_raised_names_its_point(action, kind, number):
    with pytest.raises(kind, match=f"failpoint {POINT}") as caught:
        Rules(f"{POINT}={action}")(POINT)
    assert getattr(caught.value, "errno", None) == number


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("server.nowhere=die", "there is no point 'server.nowhere'; there are fleet."),
        (f"{POINT}=explode", "has no action; there are die, stop, stall, fail, full, defect"),
        (POINT, "is no rule; write NAME=ACTION"),
        (f"{POINT}=", "is no rule"),
        (f"{POINT}=die@0", "is no rule"),
        (f"{POINT}=die@-1", "is no rule"),
        (f"{POINT}=die@2++", "is no rule"),
        (f"{POINT}=stall", "takes seconds"),
        (f"{POINT}=stall:soon", "is no rule"),
        (f"{POINT}=die:3", "takes seconds"),
        (f"{POINT}=die;{POINT}=fail@2", "two rules for one point"),
    ],
)
def test_what_cannot_be_read_is_refused(text, problem):
    with pytest.raises(FailpointError, match="LOCKSTEP_FAILPOINTS: ") as caught:
        Rules(text)
    assert problem in str(caught.value)


def test_hits_of_many_threads_are_counted_one_by_one():
    rules, raised, lock = Rules(f"{POINT}=fail@5000"), [], threading.Lock()

    def hits():
        found = acts(rules, 1000)
        with lock:
            raised.extend(found)

    threads = [threading.Thread(target=hits) for _ in range(8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert len(raised) == 1


def test_processes_that_share_a_directory_of_traces_act_once(tmp_path):
    first, second = (Rules(f"{POINT}=fail@2", tmp_path) for _ in range(2))
    assert acts(first, 3) == [2]
    assert [path.name for path in tmp_path.iterdir()] == [POINT]
    assert acts(second, 3) == []


def test_a_rule_that_goes_on_acts_in_every_process_and_leaves_its_trace(tmp_path):
    first, second = (Rules(f"{POINT}=fail@2+", tmp_path) for _ in range(2))
    assert acts(first, 3) == [2, 3]
    assert acts(second, 3) == [2, 3]
    assert [path.name for path in tmp_path.iterdir()] == [POINT]


def run(rule, **options):
    code = f"from lockstep_proto import failpoints; failpoints.hit('{POINT}'); print('went on')"
    environment = os.environ | {failpoints.VARIABLE: rule}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_process_that_is_to_die_says_so_and_dies():
    out, err = (process := run(f"{POINT}=die")).communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert out == ""
    assert err == f"failpoint {POINT}: die\n"


def test_a_process_that_is_to_stop_stops_until_it_is_continued():
    process = run(f"{POINT}=stop")
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=60)
    assert (out, err) == ("went on\n", f"failpoint {POINT}: stop\n")


def test_a_stall_is_a_sleep(monkeypatch):
    slept = []
    monkeypatch.setattr(failpoints.time, "sleep", slept.append)
    Rules(f"{POINT}=stall:2.5")(POINT)
    assert slept == [2.5]


def test_a_process_with_a_rule_it_cannot_read_does_not_start():
    process = run("server.nowhere=die")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "there is no point 'server.nowhere'" in err


def test_a_test_can_handle_hits_itself_and_only_while_it_wants_to():
    seen = []
    with failpoints.handled_by(seen.append):
        failpoints.hit(POINT)
        with failpoints.handled_by(lambda point: seen.append(f"inner {point}")):
            failpoints.hit(POINT)
        failpoints.hit(OTHER)
    failpoints.hit(OTHER)
    assert seen == [POINT, f"inner {POINT}", OTHER]


def test_without_rules_a_hit_is_one_look_at_one_name():
    assert failpoints._handler is None
    code = list(dis.get_instructions(failpoints.hit))
    jump = next(i for i, instruction in enumerate(code) if "JUMP" in instruction.opname)
    assert [instruction.argval for instruction in code[:jump] if instruction.opname.startswith("LOAD")] == ["_handler"]
    assert not any("CALL" in instruction.opname for instruction in code[:jump])


def hits_in(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "failpoints.hit":
            (name,) = node.args
            yield ast.literal_eval(name)


def test_every_point_is_hit_at_one_place_of_its_house_and_no_other_is_hit():
    places = [(name, house.name) for house in HOUSES for path in house.rglob("*.py") for name in hits_in(path)]
    assert sorted(name for name, _ in places) == sorted(failpoints.POINTS)
    owners = {"fleet": "worker"}
    assert [(n, h) for n, h in places if owners.get(n.partition(".")[0], n.partition(".")[0]) != h] == []
