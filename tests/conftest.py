"""What a machine must have for a test, and what becomes of the tests that it cannot run."""

import functools
import os
import shutil
import subprocess
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

# No example has failed because the machine was busy.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

# The bits depend on one BLAS thread, which BLAS reads when numpy is first imported.
os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0")
for name in ("RAY_ADDRESS", "LOCKSTEP_SERVER"):
    os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def all_threads(monkeypatch: pytest.MonkeyPatch) -> Generator[None, None, None]:
    """Have workers compute the small networks of tests in all their threads, as they do large ones."""
    from lockstep_worker import shares

    monkeypatch.setattr(shares, "SMALL_MULTIPLICATIONS", 0)
    shares.parts.cache_clear()
    yield
    shares.parts.cache_clear()


Report = pytest.TestReport | pytest.CollectReport


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="a test that this machine cannot run fails")
    chaos = parser.getgroup("chaos", "faults of compose clusters")
    chaos.addoption("--chaos-seed", type=int, default=1, help="draws the order of the faults")
    chaos.addoption("--chaos-rounds", type=int, default=2, help="how often each kind of fault happens")
    chaos.addoption("--chaos-report", metavar="FILE", help="write the times of recovery there, as JSON")


@functools.cache
def lacks_docker() -> str:
    """Why compose clusters cannot be started here; empty if they can."""
    for tool in ("docker", "docker-compose"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    answer = subprocess.run(["docker", "version"], capture_output=True, text=True, check=False, timeout=30)
    return answer.stderr.strip().partition("\n")[0] if answer.returncode else ""


@functools.cache
def lacks_promtool() -> str:
    """Why metrics cannot be linted here; empty if they can."""
    return "" if shutil.which("promtool") else "promtool is not installed (Debian: the package prometheus)"


@functools.cache
def lacks_namespaces() -> str:
    """Why links cannot be cut and slowed here; empty if they can."""
    for tool in ("ip", "iptables", "tc"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed (Debian: the packages iproute2 and iptables)"
    name = f"lockstep-{os.getpid()}"
    answer = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False, timeout=30)
    if answer.returncode == 0:
        subprocess.run(["ip", "netns", "del", name], check=True, timeout=30)
    return answer.stderr.strip()


NEEDS = {"docker": lacks_docker, "promtool": lacks_promtool, "netns": lacks_namespaces}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker, lack in NEEDS.items():
            if item.get_closest_marker(marker) and (reason := lack()):
                item.add_marker(pytest.mark.skip(reason=reason))


def skip_reason(report: Report) -> str | None:
    if not report.skipped or hasattr(report, "wasxfail"):
        return None
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return reason.removeprefix("Skipped: ")


def fail_if_skipped(report: Report, config: pytest.Config) -> Report:
    reason = skip_reason(report)
    if reason is not None and config.getoption("--no-skips"):
        report.outcome = "failed"
        report.longrepr = f"--no-skips: cannot be skipped here: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, Report]:
    return fail_if_skipped((yield), item.config)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, Report]:
    return fail_if_skipped((yield), collector.config)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped: list[Report] = terminalreporter.stats.get("skipped", [])
    if skipped:
        terminalreporter.section("not run on this machine")
    for report in skipped:
        terminalreporter.write_line(f"{report.nodeid}: {skip_reason(report)}")
    for report in terminalreporter.stats.get("passed", []):
        for name, text in report.user_properties:  # what the test has measured
            terminalreporter.section(name)
            terminalreporter.write_line(text)
