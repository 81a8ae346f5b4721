"""A report as one HTML file that needs nothing else, and as Markdown beside its figures."""

import base64
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from research.errors import UserError
from research.files import write_whole
from research.results.figure import load_matplotlib
from research.results.report.document import Figure, Gallery, Report, Section, Table
from research.results.report.drawing import as_inline, pointer_data, write_files

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent


def write_report(report: Report, path: Path) -> None:
    """Write ``path.html``, ``path.md`` and the figures in ``path_figures/``.

    Raises:
        UserError: see ``check_output``.

    """
    folder = check_output(path)
    svgs = {figure.name: write_files(figure, folder) for figure in figures_of(report)}
    pages = {"html": as_html(report, svgs), "md": as_markdown(report, folder.name)}
    for ending, text in pages.items():
        # The name of a directory may be no text.
        write_whole(path.with_name(f"{path.name}.{ending}"), text.encode(errors="replace"))


def check_output(path: Path) -> Path:
    """The folder for the figures of the report ``path``; it is made.

    Raises:
        UserError: it cannot be made, or a package is missing.

    """
    load_jinja()
    load_matplotlib()
    folder = path.with_name(f"{path.name}_figures")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"out={path}: {folder} cannot be made: {error.strerror}") from error
    return folder


def figures_of(report: Report) -> list[Figure]:
    """Every figure of a report."""
    galleries = [block for section in report.sections for block in section.blocks]
    return [figure for block in galleries if isinstance(block, Gallery) for figure in block.figures]


def as_html(report: Report, svgs: dict[str, str]) -> str:
    """The page, its figures given as SVG by name.

    Its policy admits no source but itself, and no script but its own, whatever a run is called.
    """
    from markupsafe import Markup

    script = (HERE / "page.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    figures = figures_of(report)
    return (
        load_jinja()
        .get_template("page.html.j2")
        .render(
            report=report,
            style=Markup((HERE / "page.css").read_text()),
            script=Markup(script),
            digest=digest,
            drawings={
                figure.name: Markup(as_inline(svgs[figure.name], figure.name)) for figure in figures
            },
            points={figure.name: pointer_data(figure) for figure in figures if figure.series},
        )
    )


def load_jinja() -> "Environment":
    """The templates of this folder; what is put into them is escaped.

    Raises:
        UserError: jinja2 is missing.

    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ModuleNotFoundError as error:
        raise UserError("a report needs the package jinja2: pip install -e '.[results]'") from error
    return Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def as_markdown(report: Report, folder: str) -> str:
    """The report as Markdown, its figures in ``folder``."""
    parts = [f"# {escaped(report.title)}", escaped(report.made)]
    for section in report.sections:
        parts += section_as_markdown(section, folder)
    return "\n\n".join(parts) + "\n"


def section_as_markdown(section: Section, folder: str) -> list[str]:
    """The paragraphs of a section."""
    parts = [f"## {escaped(section.title)}"]
    for block in section.blocks:
        if isinstance(block, str):
            parts.append(escaped(block))
        elif isinstance(block, Table):
            parts += [escaped(block.title), table_as_markdown(block)]
        else:
            parts += [
                f"![{escaped(figure.title)}]({folder}/{figure.name}.svg)"
                for figure in block.figures
            ]
    return parts


def table_as_markdown(table: Table) -> str:
    """A table; numbers stand at the right."""
    rules = ["--:" if is_number else "---" for is_number in table.is_numeric]
    rows = [[escaped(cell.text) for cell in row] for row in table.rows]
    lines = [[escaped(column) for column in table.columns], rules, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escaped(text: str) -> str:
    """``text`` on one line, without the characters that are Markdown or HTML."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", text)
