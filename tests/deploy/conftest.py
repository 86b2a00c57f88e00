"""The image that all compose clusters of a test session run."""

import pytest

from tests.deploy.compose import run


@pytest.fixture(scope="session")
def image() -> None:
    """The image as the working tree is now."""
    run("docker-compose", "build", "--quiet", "server")
