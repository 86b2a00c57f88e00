"""The demo's data and what it says next; tests/test_readme.py runs it whole."""

import sys
from pathlib import Path

import numpy as np
import pytest

from lockstep import demo
from lockstep.errors import LockstepError


def test_the_digits_are_split_once_and_for_all() -> None:
    (x, y), (x_test, y_test) = demo.digits()
    assert (x.shape, y.shape, x_test.shape, y_test.shape) == ((1437, 64), (1437,), (360, 64), (360,))
    assert x.dtype == np.float32
    assert (x.min(), x.max()) == (0.0, 1.0)
    everything = np.concatenate([x, x_test])
    assert len(np.unique(everything, axis=0)) == len(everything), "no image is in both"
    np.testing.assert_array_equal(demo.digits()[0][0], x)


def test_without_scikit_learn_the_demo_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(LockstepError, match=r"needs scikit-learn: pip install 'lockstep-training\[sklearn\]'"):
        demo.digits()


def test_a_shell_that_does_not_know_lockstep_is_told_how_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    assert demo._activation().split("  #")[0].strip() == ". .venv/bin/activate"
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / ".venv"))
    assert demo._activation() == ""
    monkeypatch.delenv("VIRTUAL_ENV")
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert demo._activation() == ""
