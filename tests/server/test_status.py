"""Every error has its status."""

import inspect

from lockstep_server import errors
from lockstep_server.status import CODES


def test_the_table_of_statuses_is_complete() -> None:
    every = {
        thing
        for _, thing in inspect.getmembers(errors, inspect.isclass)
        if issubclass(thing, errors.ServerError) and thing is not errors.ServerError
    }
    assert set(CODES) == every
