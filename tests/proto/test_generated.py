import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
V1 = ROOT / "proto" / "lockstep_proto" / "v1"


def test_the_generated_code_is_that_of_the_proto_files(tmp_path):
    bin_dir = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{bin_dir}{os.pathsep}{os.environ['PATH']}", "PYTHON": sys.executable}
    subprocess.run([ROOT / "scripts" / "generate-proto", tmp_path], check=True, env=environment, capture_output=True)
    made = {path.name: path.read_text() for path in (tmp_path / "lockstep_proto" / "v1").iterdir()}
    committed = {path.name: path.read_text() for path in V1.iterdir() if "_pb2" in path.name}
    assert made.keys() == committed.keys()
    for name, text in made.items():
        assert committed[name] == text, f"{name} is not what scripts/generate-proto makes"


@pytest.mark.parametrize("path", sorted(V1.glob("*.proto")), ids=lambda path: path.name)
def test_every_declaration_has_a_comment(path):
    lines = [line.strip() for line in path.read_text().splitlines()]
    declaration = re.compile(r"(message|enum|service|rpc|oneof) \w+|(optional |repeated )?[\w.]+ \w+ = \d+;|\w+ = \d+;")
    for above, line in itertools.pairwise(lines):
        if declaration.match(line):
            assert above.startswith("//"), f"{path.name}: {line}"
