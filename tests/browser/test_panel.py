"""The panel as people use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

WATCH = "%watch a[3]\nw = hwwatch.watches()[0]"
PANEL = "%watch_panel"
BUSY = "for i in range(200):\n    a[3] = i\n    time.sleep(0.05)\nprint('end', a[3])"


def check_accessible(book: Any) -> None:
    """No violation of what axe-core knows, in the panel."""
    from axe_playwright_python.sync_playwright import Axe

    results = Axe().run(book.page, context=".hww-panel")
    found = [
        f"{item['id']}: {item['help']}: {[node['html'][:300] for node in item['nodes']]}"
        for item in results.response["violations"]
    ]
    assert found == []
    assert len(results.response["passes"]) > 10


def tab_to(book: Any, selector: str) -> None:
    """Press Tab until the focus is there."""
    for _ in range(80):
        if book.page.evaluate("s => document.activeElement.matches(s)", selector):
            return
        book.page.keyboard.press("Tab")
    pytest.fail(f"Tab does not lead to {selector}")


@pytest.mark.parametrize("front", ["lab", "notebook"])
def test_everything(open_book: Callable[..., Any], front: str) -> None:
    book = open_book(f"{front}.ipynb", WATCH, PANEL, BUSY, "print(w)", front=front)
    book.run(1)
    book.run(2)
    book.panel.wait_for()
    book.shot("opened")

    book.start(3)
    book.wait(lambda: book.hits("a[3]") > 20, "counts rise")
    book.shot("counts-rise")
    row = book.row("a[3]")
    row.get_by_label("R", exact=True).click()
    book.wait(lambda: "last reader" in row.inner_text(), "reads are watched")
    book.shot("reads")
    row.get_by_label("W", exact=True).click()
    before = book.hits("a[3]")
    book.wait(lambda: book.hits("a[3]") > before, "writes are watched again")
    armed = row.get_by_role("checkbox", name="armed")
    armed.click()
    book.wait(lambda: "disarmed" in row.inner_text(), "disarmed")
    assert not armed.is_checked()
    book.shot("disarmed")
    armed.click()
    book.wait(lambda: "disarmed" not in row.inner_text(), "armed again")
    row.get_by_label("Policy of a[3]", exact=True).select_option("skip")
    book.wait(lambda: "skipped" in book.panel.locator("table").inner_text(), "writes are undone")
    kept = book.fact("a[3]", "value now")
    book.page.wait_for_timeout(300)
    assert book.fact("a[3]", "value now") == kept
    assert book.running(3)
    book.shot("skip")
    book.wait(lambda: not book.running(3), "the cell ends")
    assert book.output(3).strip() == f"end {kept}"
    check_accessible(book)

    tab_to(book, ".hww-adder input[type=text]")
    book.page.keyboard.type("a[5]")
    book.page.keyboard.press("Enter")
    book.wait(lambda: book.row("a[5]").count() == 1, "a row for a[5]")
    book.shot("added")
    book.page.keyboard.type("nosuch[1]")
    book.page.keyboard.press("Enter")
    alert = book.panel.get_by_role("alert")
    alert.wait_for()
    assert "nosuch" in alert.inner_text()
    book.shot("error")
    for summary in book.panel.locator("summary").all():
        summary.click()
    check_accessible(book)
    book.shot("details")
    if front == "lab":
        book.page.evaluate(
            "() => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})"
        )
        book.wait(lambda: book.page.locator("body[data-jp-theme-light=false]").count() == 1, "it is dark")
        book.wait(lambda: not book.page.locator("#jupyterlab-splash").is_visible(), "the splash is gone")
        book.shot("dark")
        check_accessible(book)
    if front == "lab":
        check_saved(book, open_book)


def check_saved(book: Any, open_book: Callable[..., Any]) -> None:
    """Opened again without its kernel, the notebook shows tables in place of the panel."""
    said = book.fact("a[3]", "value now"), f"{book.hits('a[3]'):,}"
    book.run(4)
    book.save()
    book.end_kernel()
    again = open_book(book.name, front="no kernel")
    table = again.page.locator(".hww-static table").filter(visible=True).first
    table.wait_for()
    cells = table.locator("tbody tr").first.locator("td").all_inner_texts()
    assert (cells[3], cells[6]) == said
    assert again.panel.count() == 0
    again.page.wait_for_timeout(500)
    assert "Error" not in again.page.locator(".jp-Notebook").inner_text()
    assert "Loading" not in again.page.locator(".jp-Notebook").inner_text()
    again.shot("no-kernel")


def test_thread_ends_with_its_output(open_book: Callable[..., Any]) -> None:
    feeds = "import threading\nprint([t.name for t in threading.enumerate()].count('hwwatch-panel'))"
    book = open_book("cleared.ipynb", WATCH, PANEL, feeds)
    book.run(1)
    book.run(2)
    book.panel.wait_for()
    assert book.run(3).strip() == "1"
    book.page.evaluate("window.jupyterapp.shell.currentWidget.content.activeCellIndex = 2")
    book.do("notebook:clear-cell-output")
    book.wait(lambda: book.run(3).strip() == "0", "the thread ends")
    book.run(2)
    book.panel.wait_for()
    assert book.run(3).strip() == "1"


def test_kernel_that_takes_clicks_between_cells(open_book: Callable[..., Any], server: Any) -> None:
    book = open_book(
        "old.ipynb", WATCH, PANEL, BUSY.replace("200", "80"), "print(w)", kernel=server.old_kernel()
    )
    book.run(1)
    book.run(2)
    book.panel.wait_for()
    assert "queued" not in book.panel.inner_text()
    book.start(3)
    book.wait(lambda: book.hits("a[3]") > 10, "counts rise")
    book.wait(lambda: "queued until it ends" in book.panel.inner_text(), "clicks are called queued")
    book.row("a[3]").get_by_label("R", exact=True).click()
    book.shot("queued")
    assert book.running(3)
    book.wait(lambda: not book.running(3), "the cell ends")
    book.wait(lambda: "last reader" in book.row("a[3]").inner_text(), "the click takes effect")
    book.wait(lambda: "queued" not in book.panel.inner_text(), "clicks are not queued any more", 3)
    assert "80 hits" in book.run(4)
