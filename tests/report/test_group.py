"""The group's page: complete in itself, escaped, with a link to every report there is."""

from __future__ import annotations

import numpy as np

from chisep.report import figures
from chisep.report.group import GroupReport, SessionLine, render_group
from chisep.report.pages import TABLE_SCRIPTS
from chisep.report.subject import Panel
from tests.report.test_subject import ATTACK, Page


def group_report(text: str = "plain") -> GroupReport:
    """A page with every part, and one text in every place that a file may fill."""
    rows = [
        figures.Spread("left_putamen", np.arange(9.0), [("sub-08", 8.0)]),
        figures.Spread("right_putamen", np.ones(100), [(f"sub-{n}", float(n)) for n in range(9)]),
    ]
    return GroupReport(
        summary=[(text, text)],
        header=[text],
        sessions=[
            SessionLine("sub-01", "sub-01.html", "done", [text], [text, text]),
            SessionLine("sub-02", None, "failed", [text], (), text),
            SessionLine("sub-03", None, "unfinished", [text]),
        ],
        outlier_rule=text,
        warnings=[(text, 3), ("other", 1)],
        panels=[Panel.of_figure(text, text, figures.spreads(rows, label="chi_pos_ppb"), alt=text)],
        version=text,
    )


def test_page_is_complete_in_itself():
    page = Page(render_group(group_report()))
    assert not page.open
    assert not {"link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert page.count("script") == len(TABLE_SCRIPTS)
    assert all(source.startswith("data:image/") for source in page.values("src"))
    links = page.values("href")
    assert [link for link in links if not link.startswith("#")] == ["sub-01.html"]
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert page.count("h1") == page.count("main") == page.count("nav") == 1
    assert page.count("caption") == page.count("table")


def test_texts_are_escaped():
    html = render_group(group_report(ATTACK))
    page = Page(html)
    assert not {"iframe"} & {tag for tag, _ in page.tags}
    assert page.count("script") == len(TABLE_SCRIPTS)
    assert [link for link in page.values("href") if not link.startswith("#")] == ["sub-01.html"]
    assert all(source.startswith("data:image/") for source in page.values("src"))
    assert " ".join(page.texts).count("alert('χ')") >= 8


def test_every_session_and_warning_is_shown():
    page = " ".join(Page(render_group(group_report("xyz"))).texts)
    for text in ("sub-01", "sub-02", "sub-03", "failed", "unfinished", "3 ×", "other"):
        assert text in page


def test_equal_reports_give_equal_pages():
    assert render_group(group_report()) == render_group(group_report())


def test_an_empty_group_of_figures_and_warnings():
    report = GroupReport([], [], [SessionLine("sub-01", None, "unfinished", [])], "", [], [], "1")
    assert "No warnings" in render_group(report)
