import asyncio

import pytest

from lockstep_server.writes import Writes


class Writer:
    def __init__(self, written, name, then=lambda: None):
        self.written, self.name, self.then = written, name, then

    def flush(self):
        self.written.append(self.name)
        self.then()


def run(scenario):
    """Run a scenario on an event loop. Return what was written."""
    written = []

    async def go():
        scenario(Writes(), written)
        await asyncio.sleep(0)

    asyncio.run(go())
    return written


def test_all_write_at_the_end_of_the_event_that_gave_them_something():
    def scenario(writes, written):
        writes.begin()
        writes.add(Writer(written, "a"))
        writes.add(Writer(written, "b"))
        assert written == []
        writes.end()
        assert written == ["a", "b"]

    assert run(scenario) == ["a", "b"]


def test_what_comes_from_elsewhere_is_written_in_the_next_turn_of_the_loop():
    def scenario(writes, written):
        writes.add(Writer(written, "a"))
        writes.add(Writer(written, "b"))
        assert written == []

    assert run(scenario) == ["a", "b"]


def test_what_a_write_gives_to_others_is_written_too():
    def scenario(writes, written):
        writes.begin()
        writes.add(Writer(written, "a", then=lambda: writes.add(Writer(written, "b"))))
        writes.end()
        assert written == ["a", "b"]

    assert run(scenario) == ["a", "b"]


def test_a_defect_of_one_does_not_keep_the_others_from_writing():
    def fail():
        raise ZeroDivisionError

    def scenario(writes, written):
        writes.begin()
        writes.add(Writer(written, "a", then=fail))
        writes.add(Writer(written, "b"))
        with pytest.raises(ZeroDivisionError):
            writes.end()
        assert written == ["a"]

    assert run(scenario) == ["a", "b"]
