"""Options that several benchmarks have."""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")


class Rounds:
    """Counts rounds, and tells a person at the terminal."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __iter__(self) -> Iterator[int]:
        for i in range(1, self._number + 1):
            print(f"round {i} of {self._number}", file=sys.stderr, flush=True)
            yield i

    @classmethod
    def parse(cls, text: str) -> "Rounds":
        """Read an option."""
        return cls(at_least_1(text))


def rounds(parser: argparse.ArgumentParser) -> None:
    """Add the option."""
    parser.add_argument("--rounds", type=Rounds.parse, default=Rounds(5), help="how often each is measured (default 5)")


def at_least_1(text: str) -> int:
    """Read a number."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def numbers(text: str) -> list[int]:
    """Read numbers with commas between them."""
    return [at_least_1(part) for part in text.split(",")]


def choice(kind: str, known: Mapping[str, T]) -> Callable[[str], list[T]]:
    """Return a reader of names with commas between them."""

    def read(names: str) -> list[T]:
        unknown = [name for name in names.split(",") if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"no such {kind}: {', '.join(unknown)}; there are {', '.join(known)}")
        return [known[name] for name in names.split(",")]

    return read
