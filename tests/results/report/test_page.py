"""A report as HTML and as Markdown, whatever its runs are called."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from research.results.report.document import Cell, Figure, Gallery, Report, Section, Series, Table
from research.results.report.drawing import as_inline, colours, draw_lines, pointer_data
from research.results.report.page import as_html, as_markdown, escaped, write_report


class Reader(HTMLParser):
    """Notes the tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def lines(name: str = "lines", label: str = "td3") -> Figure:
    """A figure of one line, which ends in nothing."""
    series = [Series(0, label, [0.0, 1000.0, 2000.0], [1.0, 2.0, np.nan], [0, 1, 1], [2, 3, 3])]
    return draw_lines(name, "a line", series, heading=label, x_label="steps", y_label="return")


@given(text=st.text(max_size=30))
def test_no_name_becomes_markup(text: str) -> None:
    table = Table(text, (text, "score"), [[Cell(text, state=text), Cell("1", 1.0)]])
    plain = Report("", "", [Section("", [Table("", ("", ""), [[Cell(""), Cell("1", 1.0)]]), ""])])
    named = Report(text, text, [Section(text, [table, text])])
    assert Reader(as_html(named, {})).tags == Reader(as_html(plain, {})).tags
    table_lines = as_markdown(named, "figures").splitlines()
    assert sum(line.startswith("| ---") for line in table_lines) == 1
    assert "<" not in escaped(text).replace("&lt;", "")


def test_a_name_that_is_no_text_is_written(tmp_path: Path) -> None:
    write_report(Report(b"caf\xe9".decode(errors="surrogateescape"), "", []), tmp_path / "report")
    assert "<h1>caf?</h1>" in (tmp_path / "report.html").read_text()


def test_a_name_in_a_figure_is_text(tmp_path: Path) -> None:
    label = "</script><script>hacked=1</script> $\\frac{$ _x"
    figure = lines(label=label)
    report = Report("t", "m", [Section("s", [Gallery([figure], [(0, label, "#000000")])])])
    write_report(report, tmp_path / "report")
    reader = Reader((tmp_path / "report.html").read_text())
    assert reader.tags.count("script") == 2  # the data of the figure, and the page's own
    assert sum(label in word for word in reader.words) >= 2
    assert (tmp_path / "report_figures" / "lines.png").read_bytes().startswith(b"\x89PNG")


def test_figures_of_a_page_share_no_id_and_take_its_colours(tmp_path: Path) -> None:
    figures = [lines("a"), lines("b")]
    write_report(Report("t", "m", [Section("s", [Gallery(figures)])]), tmp_path / "report")
    page = (tmp_path / "report.html").read_text()
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    targets = set(re.findall(r'(?:url\(|href=")#([^")]*)', page))
    assert targets <= set(ids)
    assert "currentColor" in page
    assert page.count('data-group="0"') >= 4


def test_pointer_data_are_the_drawn_positions() -> None:
    figure = lines()
    figure.drawing.canvas.draw()
    data = pointer_data(figure)
    (axes,) = figure.drawing.axes
    width = figure.drawing.bbox.width
    shares = [axes.transData.transform((x, 0))[0] / width for x in data["limits"]]
    np.testing.assert_allclose(shares, data["span"], atol=1e-9)
    assert data["series"][0]["y"] == [1.0, 2.0, None]


def test_numbers_stand_at_the_right_of_a_markdown_table() -> None:
    table = Table("t", ("run", "score"), [[Cell("a|b"), Cell("-")], [Cell("c"), Cell("1", 1.0)]])
    text = as_markdown(Report("r", "m", [Section("s", [table])]), "figures")
    assert text.endswith("| run | score |\n| --- | --: |\n| a\\|b | - |\n| c | 1 |\n")


def test_as_many_colours_as_groups() -> None:
    for number in (0, 1, 10, 11, 60):
        assert len(set(colours(number))) == number


def test_the_grounds_of_a_drawing_are_left_out(tmp_path: Path) -> None:
    write_report(Report("t", "m", [Section("s", [Gallery([lines()])])]), tmp_path / "report")
    svg = (tmp_path / "report_figures" / "lines.svg").read_text()
    assert "#ffffff" in svg
    assert "#ffffff" not in as_inline(svg, "lines")
    assert as_inline(svg, "lines").startswith("<svg viewBox=")
