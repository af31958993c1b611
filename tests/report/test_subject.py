"""The subject's page: complete in itself, escaped, accessible, and equal for equal reports."""

from __future__ import annotations

import dataclasses
import itertools
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chisep.errors import OutputError
from chisep.report import figures
from chisep.report.pages import TABLE_SCRIPTS
from chisep.report.subject import (
    MethodScores,
    Panel,
    RegionRow,
    Scores,
    SubjectReport,
    Table,
    method_table,
    region_table,
    render,
    write_report,
)

ATTACK = "<script>alert('χ')</script>\"'&<img src=http://example.org/x>"
VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """What a browser would see: tags with attributes, text, and whether every tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def values(self, attribute: str) -> list[str]:
        return [attributes[attribute] for _, attributes in self.tags if attributes.get(attribute)]

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def scores(nrmse: float) -> Scores:
    return Scores(nrmse_percent=nrmse, psnr_db=40 - nrmse / 10, ssim=1 - nrmse / 100, xsim=1 - nrmse / 200)


def full_report(text: str = "plain") -> SubjectReport:
    """A report with every part, and one text in every place that a file may fill."""
    chart = figures.convergence([1.0, 0.1])
    volume = np.ones((4, 5, 6))
    image = figures.three_planes(volume, np.eye(4), title="T", unit="ppm")
    return SubjectReport(
        title=text,
        subject=text,
        session=text,
        summary=[(text, text)],
        warnings=[text, "second"],
        panels=[
            Panel.of_figure(text, text, image, alt=text),
            Panel.of_figure("Convergence", "Falls.", chart, alt="Curve"),
            Panel("Methods", text, table=method_table([MethodScores(text, scores(50.0), scores(40.0))])),
        ],
        regions=[RegionRow(text, 12, (77.0, 9.0), (10.0, 3.0), (-67.0, 11.0))],
        parameters={text: {text: {text: text}}, "seed": 3},
        versions={text: text},
    )


@pytest.fixture(scope="module")
def report() -> SubjectReport:
    return full_report()


def test_page_loads_nothing_from_elsewhere(report):
    page = Page(render(report))
    assert not page.open
    assert not {"link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert page.count("script") == len(TABLE_SCRIPTS)
    assert page.values("src")
    assert all(source.startswith("data:image/") for source in page.values("src"))
    assert "url(" not in render(report)
    assert "@import" not in render(report)


def test_contents_lead_to_every_part(report):
    page = Page(render(report))
    links, ids = page.values("href"), page.values("id")
    assert len(ids) == len(set(ids))
    assert {link.removeprefix("#") for link in links} <= set(ids)
    sections = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert [link.removeprefix("#") for link in links] == sections
    assert len(sections) == len(report.panels) + 5


def test_page_is_accessible(report):
    page = Page(render(report))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [image["alt"] for image in images] == ["plain", "Curve"]
    assert page.count("h1") == page.count("main") == page.count("nav") == 1
    assert page.count("caption") == page.count("table")
    assert ("html", {"lang": "en"}) in page.tags
    for attributes in (attributes for tag, attributes in page.tags if tag == "th"):
        assert attributes["scope"] in {"row", "col", "colgroup"}


def test_texts_from_files_are_escaped():
    page = Page(render(full_report(ATTACK)))
    assert not page.open
    assert page.count("script") == len(TABLE_SCRIPTS), "the package's own"
    assert page.count("img") == 2
    shown = "".join(page.texts)
    assert shown.count(ATTACK) >= 15  # wherever full_report puts its text
    assert ATTACK in page.values("alt")


@settings(max_examples=25, deadline=None)
@given(
    text=st.text(
        st.characters(codec="utf-8", exclude_characters="\r\x00", exclude_categories=("Cc", "Cs")), min_size=1
    )
)
def test_any_text_comes_out_as_it_went_in(text):
    html = render(
        SubjectReport(title="T", subject=text, warnings=[text], parameters={"stage": {text: [text]}})
    )
    page = Page(html)
    assert not page.open
    assert page.texts.count(text) >= 2


def test_equal_reports_give_equal_pages(tmp_path):
    path = write_report(tmp_path / "sub-01.html", full_report())
    assert path.read_text(encoding="utf-8") == render(full_report())


def test_smallest_report_says_that_there_are_no_warnings():
    page = Page(render(SubjectReport(title="T", subject="01")))
    assert not page.open
    assert "No warnings." in page.texts
    assert [attributes["id"] for tag, attributes in page.tags if tag == "section"] == ["warnings"]
    assert "session" not in "".join(page.texts)


def test_warnings_come_before_everything_else(report):
    html = render(report)
    assert "No warnings" not in html
    assert html.index('class="warnings"') < html.index('id="summary"') < html.index('id="panel-1"')


def test_page_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        write_report(tmp_path / "file" / "sub-01.html", SubjectReport(title="T", subject="01"))


def test_method_table_stresses_the_best_of_every_column():
    table = method_table(
        [
            MethodScores("a", Scores(30.04, 47.0, 0.9, 0.8), Scores(20.0, 48.0, 0.9, 0.8)),
            MethodScores("b", Scores(30.01, 46.0, 0.95, 0.8), Scores(10.0, 49.0, 0.8, 0.9)),
        ]
    )
    assert table.rows[0] == ("a", "30.0", "47.00", "0.9000", "0.8000", "20.0", "48.00", "0.9000", "0.8000")
    both_nrmse, both_xsim = {(0, 1), (1, 1)}, {(0, 4), (1, 4)}
    assert table.best == both_nrmse | both_xsim | {(0, 2), (1, 3), (1, 5), (1, 6), (0, 7), (1, 8)}
    html = render(SubjectReport(title="T", subject="01", panels=[Panel("M", "c", table=table)]))
    assert Page(html).count("strong") == len(table.best)


def test_one_method_alone_is_not_the_best():
    assert not method_table([MethodScores("a", scores(30.0), scores(30.0))]).best


def test_region_table_gives_mean_and_deviation():
    row = RegionRow("putamen", 1234, (77.12, 9.26), (10.0, 3.0), (-19.84, 11.0))
    assert region_table([row]).rows == (("putamen", "1234", "77.1 ± 9.3", "10.0 ± 3.0", "−19.8 ± 11.0"),)


def test_parameters_are_shown_to_the_last_leaf():
    settings_ = {
        "solver": {"weights": {"field": 1e-6, "edges": True}, "shape": (1, 2), "tolerance": None},
        "seed": 3,
    }
    texts = Page(render(SubjectReport(title="T", subject="01", parameters=settings_))).texts
    shown = [text for text in texts if text.strip()]
    for name, value in (
        ("weights › field", "1e-06"),
        ("weights › edges", "yes"),
        ("shape", "1, 2"),
        ("tolerance", "not set"),
        ("seed", "3"),
    ):
        assert any(pair == (name, value) for pair in itertools.pairwise(shown)), name


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"image": "https://example.org/x.png", "alt": "a"},
        {"image": "data:image/png;base64,AAAA"},
        {"image": "data:image/png;base64,AAAA", "alt": "a", "table": Table(("a",), ())},
    ],
)
def test_panel_holds_one_thing_that_is_complete(wrong):
    with pytest.raises(ValueError, match="panel"):
        Panel("T", "c", **wrong)


@pytest.mark.parametrize("wrong", [{"rows": (("a", "b"),)}, {"rows": (), "groups": (("g", 2),)}])
def test_table_has_as_many_cells_as_columns(wrong):
    with pytest.raises(ValueError, match="column"):
        Table(("only",), **wrong)


def test_report_cannot_be_changed(report):
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.title = "other"
