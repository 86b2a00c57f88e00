from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

CONFTEST = Path(__file__).parents[1] / "conftest.py"
TESTS = """
import pytest

@pytest.mark.promtool
def test_metrics_lint():
    pass

def test_other():
    pass
"""


@pytest.fixture
def bare_machine(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("PATH", "")
    pytester.makeconftest(CONFTEST.read_text("utf-8"))
    pytester.makeini("[pytest]\nmarkers =\n    docker: \n    promtool: ")
    pytester.makepyfile(TESTS)
    return pytester


def test_what_the_machine_lacks_is_listed_by_name_with_the_reason(bare_machine: pytest.Pytester) -> None:
    result = bare_machine.runpytest_subprocess()
    assert result.ret == 0
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*not run on this machine*", "*::test_metrics_lint: promtool is not installed*"])


def test_no_skips_makes_them_fail(bare_machine: pytest.Pytester) -> None:
    result = bare_machine.runpytest_subprocess("--no-skips")
    assert result.ret == 1
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*--no-skips: cannot be skipped here: promtool is not installed*"])


def test_no_skips_covers_whole_modules(bare_machine: pytest.Pytester) -> None:
    bare_machine.makepyfile(test_module="import pytest\npytest.importorskip('no_such_module')")
    assert bare_machine.runpytest_subprocess().ret == 0
    result = bare_machine.runpytest_subprocess("--no-skips")
    assert result.ret == 2
    result.stdout.fnmatch_lines(["*cannot be skipped here: could not import 'no_such_module'*"])


def test_an_expected_failure_is_no_skip(bare_machine: pytest.Pytester) -> None:
    bare_machine.makepyfile("import pytest\n@pytest.mark.xfail\ndef test_known():\n    raise ValueError")
    bare_machine.runpytest_subprocess("--no-skips").assert_outcomes(xfailed=1)
