"""The scripts before they do their work; .ci/run and the README's tests run them whole."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [
    "scripts/demo",
    "scripts/environment",
    "scripts/generate-proto",
    "scripts/test",
    ".ci/run",
    "deploy/ray-node",
]
CONSTRAINTS = (ROOT / "deploy/constraints.txt").read_text("utf-8")


def run(*command: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ if path is None else {"PATH": path}
    return subprocess.run(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_shell_can_parse(script: str) -> None:
    shell = "bash" if "bash" in (ROOT / script).read_text("utf-8").partition("\n")[0] else "sh"
    assert run(shell, "-n", script).stderr == ""


def test_help_says_what_the_tests_can_be_asked() -> None:
    result = run("scripts/test", "--help")
    assert result.returncode == 0
    assert "--no-skips" in result.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A repository of nothing but what makes the environment."""
    for name in ("scripts/environment", "scripts/demo", "pyproject.toml", "deploy/constraints.txt"):
        target = tmp_path / "repository" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
        target.chmod(0o755)
    return tmp_path / "repository"


def fake_python(directory: Path, name: str, version: str, *, ensurepip: bool) -> None:
    """An executable that answers the questions of scripts/environment as that Python would."""
    directory.mkdir(exist_ok=True)
    python = directory / name
    major, minor = version.split(".")
    python.write_text(
        f"""#!{sys.executable}
import sys
sys.version_info = ({major}, {minor}, 0)
if "ensurepip" in sys.argv[2] and not {ensurepip}:
    sys.exit("No module named ensurepip")
exec(sys.argv[2])
"""
    )
    python.chmod(0o755)


def test_an_old_python_is_refused_with_the_way_out(copy: Path, tmp_path: Path) -> None:
    fake_python(tmp_path / "bin", "python3", "3.9", ensurepip=True)
    result = run(str(copy / "scripts/demo"), path=f"{tmp_path / 'bin'}:{tools(tmp_path)}")
    assert result.returncode == 2
    assert "demo: needs Python 3.11 or newer, found 3.9" in result.stderr
    assert "apt-get install python3 python3-venv" in result.stderr


def test_a_python_without_venv_is_refused_naming_the_package(copy: Path, tmp_path: Path) -> None:
    fake_python(tmp_path / "bin", "python3.12", "3.12", ensurepip=False)
    fake_python(tmp_path / "bin", "python3", "3.11", ensurepip=False)
    result = run(str(copy / "scripts/demo"), path=f"{tmp_path / 'bin'}:{tools(tmp_path)}")
    assert result.returncode == 2
    assert "apt-get install python3.12-venv" in result.stderr


def tools(tmp_path: Path) -> Path:
    """A directory with the few commands that the scripts call, and no Python."""
    directory = tmp_path / "tools"
    directory.mkdir()
    for name in ("cat", "cksum", "dirname", "rm", "sed"):
        (directory / name).symlink_to(next(p for p in (Path("/usr/bin", name), Path("/bin", name)) if p.exists()))
    return directory


def test_constraints_name_versions_and_no_host() -> None:
    lines = [line for line in CONSTRAINTS.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), lines


def test_constraints_pin_all_that_is_installed_directly() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    pinned = {name.lower().replace("_", "-") for name in re.findall(r"(?m)^([\w.-]+)==", CONSTRAINTS)}
    extras = [*project["project"]["optional-dependencies"]]
    wanted = run(sys.executable, "deploy/requirements.py", "pyproject.toml", *extras).stdout.split("\n")
    names = {match[0].lower() for line in wanted if (match := re.match(r"[\w.-]+", line))}
    assert "ray" in names
    assert names <= pinned


def test_requirements_follow_extras_that_name_extras() -> None:
    lines = run(sys.executable, "deploy/requirements.py", "pyproject.toml", "all").stdout
    assert {"hatchling", "numpy", "ray", "prometheus-client"} <= set(re.findall(r"(?m)^[\w-]+", lines))
    assert "pytest" not in lines
    assert "lockstep-training" not in lines


def test_the_compose_files_image_has_the_projects_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert f"image: lockstep:{version}\n" in (ROOT / "docker-compose.yml").read_text("utf-8")
