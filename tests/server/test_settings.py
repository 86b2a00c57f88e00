"""Settings and their command line."""

from pathlib import Path
from typing import Any

import pytest

from lockstep_server.errors import StartError
from lockstep_server.settings import DAY_S, Settings, read_arguments


def test_the_defaults_of_the_command_line_are_those_of_the_settings() -> None:
    assert read_arguments(["--state-dir", "state"]) == Settings(state_dir=Path("state"))


def test_every_argument_reaches_its_setting() -> None:
    arguments = "--state-dir s --host 0.0.0.0 --allow-remote --port 0 --http-port 1 --lease-s 3 --checkpoint-s 4"
    arguments += " --keep-checkpoints 5 --keep-finished-days 6 --keep-uploads-days 0.5 --max-upload-bytes 8"
    arguments += " --max-unsummed-bytes 9 --no-shared-memory"
    assert read_arguments([*arguments.split(), "--exit-with-parent"]) == Settings(
        state_dir=Path("s"),
        host="0.0.0.0",
        allow_remote=True,
        port=0,
        http_port=1,
        lease_s=3,
        checkpoint_s=4,
        keep_checkpoints=5,
        keep_finished_s=6 * DAY_S,
        keep_uploads_s=DAY_S / 2,
        max_upload_bytes=8,
        max_unsummed_bytes=9,
        share_memory=False,
        exit_with_parent=True,
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "localhost", "::1", "[::1]"])
def test_loopback_needs_no_switch(host: str) -> None:
    settings = Settings(state_dir=Path(), host=host)
    assert settings.host == host
    assert not settings.far


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "server.example"])
def test_binding_wider_needs_the_switch(host: str) -> None:
    with pytest.raises(StartError, match="add --allow-remote"):
        Settings(state_dir=Path(), host=host)
    settings = Settings(state_dir=Path(), host=host, allow_remote=True)
    assert settings.host == host
    assert settings.far


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"port": 70_000}, "port must be from 0 to 65534, got 70000"),
        ({"http_port": -1}, "http_port must be from 0 to 65535, got -1"),
        ({"lease_s": 0.0}, "lease_s must be more than 0, got 0.0"),
        ({"max_unsummed_bytes": 0}, "max_unsummed_bytes must be more than 0, got 0"),
        ({"keep_checkpoints": 0}, "keep_checkpoints must be at least 1, got 0"),
    ],
)
def test_a_wrong_value_is_named(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(StartError, match=words):
        Settings(state_dir=Path(), **wrong)
