"""Median, extremes and ratios as a reader sees them."""

from benchmarks.table import Table


def test_rows_show_median_extremes_and_the_median_of_the_ratios_of_each_round() -> None:
    table = Table("a case")
    table.add("floor").samples_ms += [1.0, 2.0, 4.0]
    table.add("product", limit_ms=3.5).samples_ms += [3.0, 4.0, 4.0]
    title, _, floor, product = str(table).splitlines()
    assert title == "a case, ms a step"
    assert floor.split() == ["floor", "2.000", "1.000", "4.000", "1.00"]
    assert product.split() == ["product", "4.000", "3.000", "4.000", "2.00", "3.5", "over", "the", "limit"]


def test_a_row_below_its_limit_is_not_blamed() -> None:
    table = Table("a case")
    table.add("floor", limit_ms=1.0).samples_ms.append(1.0)
    assert str(table).splitlines()[-1].split() == ["floor", "1.000", "1.000", "1.000", "1.00", "1"]
