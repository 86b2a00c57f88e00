"""What the pages tell people to type: every block and command is run here, or by the test that is named for it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import lockstep
from lockstep import cli
from lockstep_proto.reader import enum_names
from lockstep_proto.v1 import job_pb2
from tests.client.servers import free_port

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = PAGES[0].read_text("utf-8")

# Commands that are not run here, and by what they are: a file, and words in it that do it.
ELSEWHERE = {
    "./scripts/test": (".ci/run", "./scripts/test --all --no-skips"),
    "docker-compose up -d --build": ("tests/deploy/conftest.py", '"docker-compose", "build", "--quiet", "server"'),
    "docker-compose up": ("tests/deploy/compose.py", 'compose("up", "--detach", "--scale", '),
    "docker-compose up -d --scale ray-worker=3": (
        "tests/deploy/test_compose.py",
        'compose("up", "--detach", "--no-recreate", "--scale", f"ray-worker={workers}")',
    ),
    "docker-compose down": ("tests/deploy/compose.py", 'compose("down", '),
    "lockstep verify": ("tests/client/test_recomputing.py", 'run("verify", job.id)'),
    "lockstep diff": ("tests/client/test_recomputing.py", 'run("diff", a.id, b.id)'),
    "lockstep verify ID": ("tests/client/test_recomputing.py", 'run("verify", job.id)'),
    "lockstep diff A B": ("tests/client/test_recomputing.py", 'run("diff", a.id, b.id)'),
    "python -m benchmarks all --markdown": (
        "tests/benchmarks/test_command_line.py",
        'run("all", "--only", "start", "--quick", "--markdown", str(page))',
    ),
    "python -m benchmarks scaling --rounds 1 --markdown": ("tests/benchmarks/test_scaling.py", "page("),
    "promtool check metrics": ("tests/server/test_metrics.py", '["promtool", "check", "metrics"]'),
}
DEMOS = ["./scripts/demo", "./scripts/demo --workers 1", "./scripts/demo --workers 1 --cpus-per-worker 2"]
IN_SHELL = [
    ". .venv/bin/activate",
    "lockstep up --workers 2",
    "lockstep submit examples/digits.toml --watch",
    "lockstep list",
    "lockstep down",
]
HERE = [*DEMOS, *IN_SHELL, "lockstep up", "lockstep --help", "lockstep validate FILE"]


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    heading: str
    language: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    heading = ""
    parts = re.split(r"^```([^\n]*)\n(.*?)^```$", page.read_text("utf-8"), flags=re.M | re.S)
    for prose, language, text in zip(parts[0::3], parts[1::3], parts[2::3], strict=False):
        heading = [heading, *re.findall(r"^#+ (.+)$", prose, re.M)][-1]
        yield Block(page, heading, language, text)


def block(heading: str, language: str) -> str:
    """The one block of the README below a heading."""
    (found,) = (b.text for b in blocks(PAGES[0]) if (b.heading, b.language) == (heading, language))
    return found


def commands(text: str) -> list[str]:
    """The commands of a shell block."""
    lines = [line.partition(" #")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def mentioned(page: Path) -> set[str]:
    """The commands in the running text of a page."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)
    spans = {" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)}
    return {span for span in spans if re.match(r"(\./scripts/|lockstep |docker|pip |python |promtool )", span)}


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """The environment of a checkout with a `lockstep` in its .venv: this repository's, whose `up` takes free ports."""
    port, http_port = free_port(), free_port()
    python_path = os.pathsep.join([*map(str, (ROOT / house for house in ("proto", "worker", "server", "client")))])
    command = tmp_path / ".venv" / "bin" / "lockstep"
    command.parent.mkdir(parents=True)
    (command.parent / "activate").write_text('PATH="$PWD/.venv/bin:$PATH"\n')
    command.write_text(
        f"#!/bin/sh\n"
        f"export PYTHONPATH={python_path}\n"
        f'if [ "$1" = up ]; then set -- "$@" --port {port} --http-port {http_port}; fi\n'
        f'exec {sys.executable} -m lockstep.cli "$@"\n'
    )
    command.chmod(0o755)
    return os.environ | {
        "PYTHONPATH": python_path,
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "LOCKSTEP_SERVER": f"127.0.0.1:{port}",
    }


def run(command: list[str], directory: Path, environment: dict[str, str]) -> str:
    ran = subprocess.run(
        command, cwd=directory, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, f"{command}: {ran.stdout}\n{ran.stderr}"
    return ran.stdout


# Completeness


def test_there_is_no_block_that_no_test_knows() -> None:
    found = {(block.page.name, block.heading, block.language) for page in PAGES for block in blocks(page)}
    assert found == {
        ("README.md", "Try it", "sh"),
        ("README.md", "From Python", "python"),
        ("README.md", "From the shell", "sh"),
        ("README.md", "A cluster with Docker", "sh"),
        ("README.md", "A job file", "toml"),
        ("metrics.md", "Questions to ask", "promql"),  # tests/server/test_metrics.py
        ("performance.md", "Performance", ""),  # facts of a machine, not of the product
        ("scaling.md", "Scaling", ""),
    }


def test_there_is_no_command_that_no_test_runs() -> None:
    found = {command for page in PAGES for b in blocks(page) if b.language == "sh" for command in commands(b.text)}
    found |= {command for page in PAGES for command in mentioned(page)}
    assert found == {*HERE, *ELSEWHERE}


@pytest.mark.parametrize(("command", "place"), ELSEWHERE.items())
def test_commands_that_are_not_run_here_are_run_where_it_is_said(command: str, place: tuple[str, str]) -> None:
    file, words = place
    assert words in (ROOT / file).read_text("utf-8")


def test_links_lead_somewhere() -> None:
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            path = page.parent / name if name else page
            anchors = path.read_text("utf-8") if anchor and path.is_file() else ""
            slugs = {
                re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in re.findall(r"^#+ (.+)$", anchors, re.M)
            }
            if not path.exists() or (anchor and anchor not in slugs):
                broken.append(f"{page.name}: {target}")
    assert not broken


# The demo


@pytest.fixture
def checkout(tmp_path: Path, shell: dict[str, str]) -> Path:
    """A repository whose environment is made already, so that its scripts install nothing."""
    place = tmp_path / "lockstep"
    for name in ("scripts/environment", "scripts/demo", "pyproject.toml", "deploy/constraints.txt"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, place / name)
    made = place / ".venv"
    (made / "bin").mkdir(parents=True)
    (made / "bin" / "python").symlink_to(sys.executable)
    shutil.copy(tmp_path / ".venv" / "bin" / "lockstep", made / "bin" / "lockstep")
    (made / "lockstep.home").write_text(f"{place}\n")
    stamp = subprocess.check_output("cat pyproject.toml deploy/constraints.txt | cksum", shell=True, cwd=place)
    (made / "lockstep.all,sklearn").write_bytes(stamp)
    return place


@pytest.mark.cluster
def test_the_demo_classifies_digits_with_the_same_bits_on_any_cluster(checkout: Path, shell: dict[str, str]) -> None:
    told = [run(command.split(), checkout, shell) for command in DEMOS]
    digests = {re.search(r"^sha256 +([0-9a-f]{64})$", text, re.M)[1] for text in told}  # type: ignore[index]
    assert len(digests) == 1
    for text in told:
        accuracy = re.search(r"^test accuracy +(\d\.\d+) ", text, re.M)
        assert accuracy
        assert float(accuracy[1]) >= 0.96
        assert re.search(r"^digits  step \d+/\d+  epoch \d+/\d+  loss .* rows/s  \d workers?", text, re.M), "progress"
        (saved,) = re.findall(r"^model +(.+)$", text, re.M)
        assert lockstep.Model.load(checkout / saved).digest in digests
        assert "lockstep submit examples/digits.toml --watch" in text.partition("try next:")[2]


# From Python


@pytest.mark.cluster
def test_the_python_block_runs_as_it_stands(tmp_path: Path, shell: dict[str, str]) -> None:
    code = block("From Python", "python")
    assert 'lockstep.Client("host:50051")' in code, "the other way to a client is named"
    out = run([sys.executable, "-c", code], tmp_path, shell).splitlines()
    state, digest, validation_accuracy = out[-2].split()
    assert state == "succeeded"
    assert any(line.startswith("digits  succeeded  step 60/60  epoch 10/10") for line in out), "progress is shown"
    assert float(out[-1]) == float(validation_accuracy) > 0.85
    assert lockstep.Model.load(tmp_path / "digits.safetensors").digest == digest


# From the shell


@pytest.mark.cluster
def test_the_shell_block_runs_as_it_stands(tmp_path: Path, shell: dict[str, str]) -> None:
    text = block("From the shell", "sh")
    assert commands(text) == IN_SHELL
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    out = run(["sh", "-euc", text], tmp_path, shell)
    assert re.search(r"^workers +2$", out, re.M), "of `up`"
    assert re.search(r"^state +succeeded$", out, re.M), "of `submit --watch`"
    assert re.search(r"^[0-9a-f]{6}  digits  succeeded", out, re.M), "of `list`"
    assert out.endswith("the cluster has ended\n"), "of `down`"


def test_the_readme_names_every_verb_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    helped = capsys.readouterr().out
    verbs = set(re.findall(r"^    (\w+)(?: |$)", helped, re.M))
    section = README.partition("## From the shell")[2].partition("\n## ")[0]
    named = set(re.findall(r"^lockstep (\w+)", section, re.M)) | set(re.findall(r"`(\w+)`", section))
    assert named == verbs
    codes = re.compile(
        r"\b(\d+)\s+(ok|the job failed|bad input|no server or no permission|not found|timeout|interrupted)"
    )
    assert dict(codes.findall(section)) == dict(codes.findall(" ".join(helped.split())))
    assert len(codes.findall(section)) == 7


# A job file


def test_the_job_file_is_valid_beside_its_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    file = tmp_path / "examples" / "readme.toml"
    file.write_text(block("A job file", "toml"))
    cli.main(["validate", str(file)])
    assert capsys.readouterr().out == f"{file} is a valid job\n"


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.toml")), ids=lambda file: file.name)
def test_the_examples_are_valid(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["validate", str(file)])
    assert capsys.readouterr().out == f"{file} is a valid job\n"


def test_the_choices_that_the_job_file_names_are_all_there_are() -> None:
    text = block("A job file", "toml")

    def choices(line: str) -> set[str]:
        (value, others) = re.search(line + r".*# or (.+)$", text, re.M).groups()  # type: ignore[union-attr]
        return {value, *others.split(", ")}

    assert choices(r'^loss = "(\w+)"') == set(enum_names(job_pb2.Loss.DESCRIPTOR))
    assert choices(r"^\[optimizer\.(\w+)\]") == set(job_pb2.Optimizer.DESCRIPTOR.fields_by_name)
