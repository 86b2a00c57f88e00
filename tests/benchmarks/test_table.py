"""Median, extremes and ratios as a reader sees them."""

import pytest

from benchmarks.table import Limit, Row, Table


def table() -> Table:
    table = Table("a case", "ms a step", note="A note.")
    table.add("floor").samples += [1.0, 2.0, 4.0]
    table.add("product", Limit(3.5)).samples += [3.0, 4.0, 4.0]
    return table


def test_rows_show_median_extremes_and_the_median_of_the_ratios_of_each_round() -> None:
    title, _, floor, product, note = str(table()).splitlines()
    assert title == "a case, ms a step"
    assert floor.split() == ["floor", "2.000", "1.000", "4.000", "1.00"]
    assert product.split() == ["product", "4.000", "3.000", "4.000", "≤", "3.5", "missed", "2.00"]
    assert note == "A note."


def test_markdown_says_the_same() -> None:
    title, _, head, _, floor, product, _, note = table().markdown().splitlines()
    assert title == "### a case"
    assert head == "| ms a step | median | min | max | limit | ratio |"
    assert floor == "| floor | 2.000 | 1.000 | 4.000 |  | 1.00 |"
    assert product == "| product | 4.000 | 3.000 | 4.000 | ≤ 3.5 missed | 2.00 |"
    assert note == "A note."


def test_a_row_may_have_a_baseline_of_its_own() -> None:
    other = Row("elsewhere", samples=[8.0])
    table = Table("a case", "s")
    table.add("floor").samples.append(1.0)
    table.add("product", baseline=other).samples.append(4.0)
    assert str(table).splitlines()[-1].split()[-1] == "0.50"


@pytest.mark.parametrize(
    ("limit", "holds"),
    [
        (Limit(2.0), True),
        (Limit(1.9), False),
        (Limit(4.0, of_ratio=True), True),
        (Limit(3.9, of_ratio=True), False),
        (Limit(2.0, at_least=True), True),
        (Limit(2.1, at_least=True), False),
        (Limit(4.1, of_ratio=True, at_least=True), False),
    ],
)
def test_a_limit_is_of_the_median_or_of_the_ratio(limit: Limit, holds: bool) -> None:
    assert limit.holds(median=2.0, ratio=4.0) == holds


@pytest.mark.parametrize(
    ("value", "text"), [(0.12345, "0.123"), (12.345, "12.35"), (123.45, "123.5"), (1234.5, "1234")]
)
def test_numbers_have_four_digits(value: float, text: str) -> None:
    table = Table("a case", "s")
    table.add("floor").samples.append(value)
    assert str(table).splitlines()[-1].split()[1] == text
