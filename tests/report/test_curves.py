import re
from xml.etree import ElementTree

import pytest

from rntp.report.curves import MAX_POINTS, Chart, Series, line_chart, tick_labels, ticks


def drawn(*series: Series, title: str = "T", unit: str = "nats") -> Chart:
    chart = line_chart(title, unit, list(series))
    assert chart is not None
    return chart


def paths(chart: Chart, kind: str) -> list[str]:
    root = ElementTree.fromstring(str(chart.svg))
    return [el.attrib["d"] for el in root.iter("path") if el.attrib["class"].split()[0] == kind]


def texts(chart: Chart) -> list[str]:
    return [el.text or "" for el in ElementTree.fromstring(str(chart.svg)).iter("text")]


def test_ticks_are_round_and_cover_the_values() -> None:
    assert ticks(0.0, 1.0) == [0.0, 0.5, 1.0]
    assert ticks(0.03, 0.31) == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert ticks(-0.41, 0.02) == [-0.6, -0.4, -0.2, 0.0, 0.2]
    assert ticks(1e-6, 9e-6) == pytest.approx([0, 2e-6, 4e-6, 6e-6, 8e-6, 1e-5])


@pytest.mark.parametrize("bounds", [(1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0)])
def test_no_axis_without_a_range(bounds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="no axis"):
        ticks(*bounds)


def test_tick_labels_have_as_many_digits_each() -> None:
    assert tick_labels([-0.5, 0.0, 1.25]) == ["−0.50", "0.00", "1.25"]
    assert tick_labels([0, 10_000]) == ["0", "10,000"]
    assert tick_labels([0, 2e-5]) == ["0", "2e−05"]


def test_values_land_where_the_axes_say() -> None:
    chart = drawn(Series("a", [0, 10], [0.0, 1.0]))
    # The plot area is x 56 … 390, y 188 (low) … 28 (high).
    assert paths(chart, "line") == ["M56.0 188.0L390.0 28.0"]
    assert texts(chart) == ["nats", "0.0", "0.5", "1.0", *["0", "2", "4", "6", "8", "10"], "step"]


def test_null_points_leave_gaps_and_a_lone_point_is_a_dot() -> None:
    chart = drawn(Series("a", [1, 2, 3, 4, 5, 6], [1.0, 2.0, None, 1.0, None, 2.0]))
    lines = paths(chart, "line")
    assert len(lines) == 1
    assert lines[0].count("L") == 1
    assert str(chart.svg).count("<circle") == 2


def test_nothing_to_draw_is_none() -> None:
    assert line_chart("T", "nats", []) is None
    assert line_chart("T", "nats", [Series("a", [1, 2], [None, None])]) is None
    assert line_chart("T", "nats", [Series("a", [], [])]) is None


def test_one_point_and_a_constant_line_have_axes() -> None:
    assert "<circle" in drawn(Series("a", [3], [2.0])).svg
    assert paths(drawn(Series("a", [1, 2], [5.0, 5.0])), "line") == ["M56.0 108.0L390.0 108.0"]


def test_a_band_stretches_the_axis_and_breaks_at_gaps() -> None:
    chart = drawn(
        Series("a", [1, 2, 3, 4], [1.0, 1.0, None, 1.0], [0.0] * 4, [2.0, 2.0, None, 4.0])
    )
    assert len(paths(chart, "band")) == 1
    assert paths(chart, "band")[0].endswith("Z")
    assert len(paths(chart, "bar")) == 1
    assert "4" in texts(chart)


def test_lines_that_are_not_there_have_no_legend_entry() -> None:
    chart = drawn(Series("a", [1, 2], [1.0, 2.0]), Series("b", [1, 2], [None, None], color=1))
    assert chart.legend == [("c0 d0", "a")]


def test_colours_and_dashes_cycle() -> None:
    assert Series("a", [], [], color=9, dash=5).css == "c1 d1"


def test_many_points_are_averaged_and_the_chart_says_so() -> None:
    count = 5 * MAX_POINTS
    ys: list[float | None] = [float(i % 5) for i in range(count)]
    chart = drawn(Series("a", list(range(1, count + 1)), ys))
    assert chart.note == "each point is the mean of 5 steps"
    assert paths(chart, "line")[0].count("L") == MAX_POINTS - 1
    heights = set(re.findall(r" ([\d.]+)", paths(chart, "line")[0]))
    assert len(heights) == 1  # the mean of 0 … 4 each time


def test_an_average_over_nulls_only_is_a_gap() -> None:
    ys: list[float | None] = [1.0] * 800
    ys[400:420] = [None] * 20
    chart = drawn(Series("a", list(range(800)), ys))
    assert len(paths(chart, "line")) == 2


def test_hostile_labels_are_escaped() -> None:
    evil = '"><script>alert(1)</script>'
    chart = drawn(Series(evil, [1, 2], [1.0, 2.0]), title=evil, unit=evil)
    assert "<script" not in chart.svg
    assert ElementTree.fromstring(str(chart.svg)).attrib["aria-label"] == f"{evil}, {evil}"


def test_fractions_have_the_whole_axis_and_what_cannot_be_negative_has_no_negative_one() -> None:
    def labels(values: list[float], limits: tuple[float | None, float | None]) -> list[str]:
        chart = line_chart("T", "u", [Series("a", [1, 2], values)], limits=limits)
        assert chart is not None
        return texts(chart)[1:-3]

    assert labels([0.0, 0.0], (0.0, 1.0)) == ["0.0", "0.5", "1.0"]
    assert labels([0.97, 1.0], (0.0, 1.0)) == ["0.0", "0.5", "1.0"]
    assert labels([0.0, 0.0], (0.0, None))[0] == "0.0"
    assert labels([0.0, 0.0], (None, None))[0] == "−1.0"
    # A value that should not be is drawn all the same.
    assert labels([-2.0, -2.0], (0.0, None))[0] == "−2.2"
    assert labels([0.5, 1.5], (0.0, 1.0))[-1] == "1.5"


def test_parts_of_a_chart_lead_to_their_steps() -> None:
    series = Series("gain", [1, 5, 11], [0.5, -0.25, None])
    chart = line_chart("T", "nats", [series], links=[1, 5, 11, 40])
    assert chart is not None
    root = ElementTree.fromstring(str(chart.svg))
    links = list(root.iter("a"))
    assert [link.attrib["href"] for link in links] == ["#step-1", "#step-5", "#step-11"]
    assert {link.attrib["tabindex"] for link in links} == {"-1"}
    strips = [(float(r.attrib["x"]), float(r.attrib["width"])) for r in root.iter("rect")]
    # Steps 1 to 11 over pixels 56 to 390: borders at steps 3 and 8.
    assert strips == [(56.0, 66.8), (122.8, 167.0), (289.8, 100.2)]
    titles = [title.text for title in root.iter("title")]
    assert titles[0] == "step 1; gain 0.5; choose to read its thoughts"
    assert titles[1] == "step 5; gain −0.25; choose to read its thoughts"
    assert titles[2] == "step 11; choose to read its thoughts"
    assert "<a" not in drawn(series).svg
