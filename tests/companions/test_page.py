"""The table of companions: its statistic, and that the page holds what the script makes of the numbers."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kendalltau

FOLDER = Path(__file__).parents[2] / "examples" / "evidence"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(FOLDER))
    try:
        import companions
    finally:
        sys.path.remove(str(FOLDER))
    yield companions
    del sys.modules["companions"]


def test_tau_within_one_stratum_is_scipys(script):
    x, y = np.random.default_rng(0).integers(0, 9, (2, 40))
    assert script.kendall(x, y, [0] * 40) == pytest.approx(kendalltau(x, y).statistic)


def test_strata_make_pairs_of_their_own_alone(script):
    # Within each stratum the order is reversed; between the two it is not.
    x, y, strata = [1, 2, 11, 12], [2, 1, 12, 11], ["a", "a", "b", "b"]
    assert script.kendall(x, y, strata) == -1
    assert script.kendall(x, y, [0] * 4) > 0
    assert script.kendall([1, 2, 11, 12], [1, 2, 12, 11], strata, [3, 1]) == pytest.approx(0.5)


def test_what_is_not_known_makes_no_pair(script):
    assert script.kendall([1, 2, np.nan], [1, 2, -5], [0] * 3) == 1


def test_the_page_holds_what_the_script_makes_of_the_numbers(script):
    rows, page = script.read(), script.PAGE.read_text(encoding="utf-8")
    assert len(rows) >= 100
    assert script.filled(page, script.table(rows)) == page
