"""A report as files: one page of HTML that needs nothing beside it, and its twin in Markdown with the figures as files."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from .drawing import FAINT, GRID, INK
from .report_page import Report, Table

TEMPLATE = Path(__file__).parents[1] / "assets" / "report" / "page.html"


def write_report(report: Report, page: Path) -> list[Path]:
    """Writes ``page`` (HTML), and beside it the same in Markdown with the figures as files, and the table as csv. Returns them."""
    page.parent.mkdir(parents=True, exist_ok=True)
    pictures = [page.with_name(f"{page.stem}-{i}-{d.kind}.png") for i, d in enumerate(report.drawings, 1)]
    for drawing, picture in zip(report.drawings, pictures):
        drawing.figure.savefig(picture, dpi=130)
    texts = {page: to_html(report), page.with_suffix(".md"): to_markdown(report, [picture.name for picture in pictures])}
    if len(report.summary):
        texts[page.with_suffix(".csv")] = report.summary.to_csv(index=False)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    return [*texts, *pictures]


def to_html(report: Report) -> str:
    """One page without scripts, fonts or pictures from elsewhere. Everything in it is escaped, but the figures' own drawing."""
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    drawings = [{"svg": Markup(to_svg(d.figure, str(i))), "caption": d.caption} for i, d in enumerate(report.drawings)]
    return template.render({**vars(report), "drawings": drawings})


def to_svg(figure: Figure, salt: str) -> str:
    """A drawing to be put into a page: its ink is that of the page, light or dark. ``salt`` keeps its names apart from others'."""
    drawn = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    svg = drawn.getvalue()[drawn.getvalue().index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)
    for color, name in ((INK, "ink"), (FAINT, "faint"), (GRID, "line")):
        svg = svg.replace(color, f"var(--{name})")
    return svg


def to_markdown(report: Report, pictures: list[str]) -> str:
    """The same as text; ``pictures``: names of the figures' files beside it."""
    parts = [f"# {_escape(report.title)}", *(f"**{_escape(question)}**" for question in report.questions), _escape(report.facts)]
    parts += [f"**{_escape(alarm)}**" for alarm in report.alarms]
    parts += ["## What differs", _pairs(report.swept) if report.swept else "Nothing: all runs have the same configuration."]
    if report.fixed:
        parts += _folded(f"the same in all runs: {len(report.fixed)} keys", report.fixed)
    for table in report.tables:
        parts += [f"## {_escape(table.title)}", _table(table), *map(_escape, table.notes)]
    if report.drawings:
        parts.append("## Figures")
        parts += [f"![{_escape(d.caption)}]({picture})" for d, picture in zip(report.drawings, pictures)]
    parts += map(_escape, report.figure_notes)
    if report.failures:
        parts.append("## Runs that failed")
        for runs, error in report.failures.items():
            parts += [_escape(runs), _code(error)]
    parts += ["## Where it ran", _pairs(report.environment) if report.environment else "The runs do not say."]
    if report.ran:
        parts += _folded("which implementation ran, per operator", report.ran)
    parts += ["## To repeat it", *map(_code, report.commands), *map(_escape, report.command_notes)]
    return "\n\n".join(parts) + "\n"


def _escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    text = re.sub(r"([\\`*_{}\[\]#|~$])", r"\\\1", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _code(text: str) -> str:
    """A block of code, in a fence longer than any in the text."""
    fence = "`" * max([3, *(len(ticks) + 1 for ticks in re.findall("`+", text))])
    return f"{fence}\n{text}\n{fence}"


def _table(table: Table) -> str:
    rules = ["---" if i < table.num_names else "---:" for i in range(len(table.header))]
    rows = [[_escape(cell) for cell in row] for row in (table.header, *table.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rules, *rows[1:]))


def _pairs(pairs: Mapping[str, str]) -> str:
    rows = [[key, value] for key, value in pairs.items()]
    return _table(Table("", ["key", "values"], rows, 2))


def _folded(summary: str, pairs: Mapping[str, str]) -> list[str]:
    return [f"<details><summary>{_escape(summary)}</summary>", _pairs(pairs), "</details>"]
