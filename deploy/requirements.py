"""Prints what pyproject.toml requires, one a line, so that an image layer can hold it apart from the code.

Usage: requirements.py PYPROJECT [EXTRA...]
"""

import re
import sys
import tomllib
from pathlib import Path


def main(pyproject: str, *extras: str) -> None:
    """Prints the build backend, the base dependencies and those of the extras, which may name each other."""
    project = tomllib.loads(Path(pyproject).read_text("utf-8"))
    own = re.compile(re.escape(project["project"]["name"]) + r"\[(.+)\]")
    wanted, seen = list(extras), set[str]()
    lines = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    while wanted:
        extra = wanted.pop()
        if extra in seen:
            continue
        seen.add(extra)
        for line in project["project"]["optional-dependencies"][extra]:
            if match := own.fullmatch(line):
                wanted += match[1].split(",")
            else:
                lines.append(line)
    print("\n".join(lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
