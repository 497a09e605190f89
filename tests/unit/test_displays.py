"""Tables for people, as HTML."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hwwatch import displays
from hwwatch.displays import Markup, coverage_html, place, place_html, table_html, watches_html
from hwwatch.reports import Report

EVIL = "<b onclick='x'>&"


def test_numbers_stand_right_and_all_is_escaped() -> None:
    text = table_html(["name", EVIL], [("a", 1), (EVIL, 22), (Markup("<i>i</i>"), 3.5)], EVIL)
    assert text.count('<td class="number">') == 3
    assert text.count('<th scope="col" class="number">') == 1
    assert "<td>a</td>" in text
    assert "<td><i>i</i></td>" in text
    assert "onclick='" not in text
    assert "<caption>&lt;b onclick" in text
    assert "<td>True</td>" in table_html(["x"], [(True,)])
    assert "<tbody></tbody>" in table_html(["x"], [])


def test_watches_coverage_and_report(story: pd.DataFrame, fake_session: Any) -> None:
    watches = watches_html(fake_session.watches())
    assert "<caption>2 watches, 2 armed</caption>" in watches
    assert '<td>a</td><td>w</td><td class="number">8</td>' in watches
    coverage = fake_session.coverage()
    assert "<caption>coverage</caption>" in coverage_html(coverage)
    report = Report(story, coverage)._repr_html_()
    assert f"<caption>a, n: {len(story)} hits by 3 lines</caption>" in report
    assert re.findall(r'<td class="number">(\d+)</td>', report)
    assert "<code>put(fake, " in report
    for text in (watches, coverage_html(coverage), report):
        assert "<script" not in text
        assert "color" not in text  # those of the front end, light or dark


@pytest.mark.parametrize(
    ("file", "link"),
    [
        ("sub/my module.py", "sub/my%20module.py"),
        ("bug.py", "bug.py"),
        ("missing.py", None),
        ("../outside.py", None),
        ("sub", None),
    ],
)
def test_links_to_files_below_the_notebook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, link: str | None
) -> None:
    folder = tmp_path / "notebooks"
    (folder / "sub").mkdir(parents=True)
    for name in ("sub/my module.py", "bug.py", "../outside.py"):
        (folder / name).touch()
    row = {"file": os.path.normpath(folder / file), "line": 12, "cell": pd.NA, "exact": True}
    monkeypatch.chdir(folder)
    assert "<a" not in place_html(row)  # no notebook
    monkeypatch.setattr(displays, "notebook_folder", str(folder))
    text = place_html(row)
    assert text == (f'<a href="{link}">{file}:12</a>' if link else text)
    assert ("<a" in text) == (link is not None)
    assert "<a" not in place_html(row | {"cell": 3})
    assert "<a" not in place_html(row | {"exact": False})


def test_places_where_the_current_folder_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"file": str(tmp_path / "bug.py"), "line": 12}
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert place(row) == f"{tmp_path}/bug.py:12"
    assert place_html(row) == place(row)
