"""A real JupyterLab and Notebook 7 in a headless Chromium.

``HWWATCH_CHROMIUM`` names another browser than the system's; ``HWWATCH_SCREENSHOTS`` a folder in which each
step leaves a picture.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

#: The oldest ipykernel that the panel is tried with; it handles clicks between cells only.
OLD = "6.31.0"
_SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}
_START = "%load_ext hwwatch\nimport hwwatch, time\nimport numpy as np\na = np.zeros(8)"


def chromium() -> str | None:
    """Path of the browser, or None."""
    names = (os.environ.get("HWWATCH_CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if name and (found := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The browser."""
    path = chromium()
    if path is None:
        pytest.skip("no Chromium: `sudo apt install chromium`, or set HWWATCH_CHROMIUM")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Server]:
    """One Jupyter server, which has both front ends."""
    for name in ("jupyterlab", "notebook"):
        pytest.importorskip(name)
    server = Server(tmp_path_factory.mktemp("jupyter"), request.config.cache.mkdir("ipykernel"))
    yield server
    server.stop()


class Server:
    """A Jupyter server in a folder of its own."""

    def __init__(self, folder: Path, kept: Path) -> None:
        self.folder, self._kept = folder, kept
        self.notebooks = folder / "notebooks"
        self.notebooks.mkdir()
        config = folder / "config" / "labconfig"
        config.mkdir(parents=True)
        (config / "default_setting_overrides.json").write_text(json.dumps(_SETTINGS))
        self._env = os.environ | {
            "JUPYTER_CONFIG_DIR": str(folder / "config"),
            "JUPYTER_DATA_DIR": str(folder / "data"),
            "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
            "IPYTHONDIR": str(folder / "ipython"),
            "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        }
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0"]
        command += [f"--ServerApp.root_dir={self.notebooks}", "--LabApp.expose_app_in_browser=True"]
        command += ["--JupyterNotebookApp.expose_app_in_browser=True"]
        self._log = (folder / "log").open("w")
        self._process = subprocess.Popen(command, env=self._env, stdout=self._log, stderr=self._log)
        self.url, self.token = self._wait()

    def _wait(self) -> tuple[str, str]:
        end = time.monotonic() + 60
        while time.monotonic() < end and self._process.poll() is None:
            for path in (self.folder / "runtime").glob("jpserver-*.json"):
                try:
                    found = json.loads(path.read_text())
                except ValueError:  # half written
                    continue
                return found["url"], found["token"]
            time.sleep(0.1)
        pytest.fail(f"no Jupyter server; it wrote:\n{(self.folder / 'log').read_text()}")

    def old_kernel(self) -> str:
        """Name of a kernel with an old ipykernel; the rest is as it is here."""
        place = self._kept / OLD
        if not (place / "ipykernel").exists():
            packages = [f"ipykernel=={OLD}", "nest-asyncio"]
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(place)]
            done = subprocess.run([*command, *packages], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"ipykernel {OLD} cannot be installed: {done.stderr[-300:]}")
        folder = self.folder / "data" / "kernels" / "old"
        folder.mkdir(parents=True, exist_ok=True)
        spec = {
            "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "display_name": f"ipykernel {OLD}",
            "language": "python",
            "env": {"PYTHONPATH": str(place)},
        }
        (folder / "kernel.json").write_text(json.dumps(spec))
        return "old"

    def write(self, name: str, cells: tuple[str, ...], kernel: str) -> None:
        """Make a notebook."""
        import nbformat

        book = nbformat.v4.new_notebook()
        book.metadata["kernelspec"] = {"name": kernel, "display_name": kernel, "language": "python"}
        book.cells = [nbformat.v4.new_code_cell(cell) for cell in (_START, *cells)]
        nbformat.write(book, self.notebooks / name)

    def take_kernel(self, name: str) -> None:
        """Have a notebook ask for a kernel that is not there; it stays trusted."""
        import nbformat
        from nbformat.sign import NotebookNotary

        book = nbformat.read(self.notebooks / name, 4)
        book.metadata = {"kernelspec": {"name": "gone", "display_name": "gone", "language": "gone"}}
        nbformat.write(book, self.notebooks / name)
        NotebookNotary(data_dir=str(self.folder / "data")).sign(book)

    def stop(self) -> None:
        """End it with its kernels."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._log.close()


class Book:
    """A notebook that is open in the browser, and the panel in it."""

    def __init__(self, page: Any, server: Server, name: str, front: str) -> None:
        self.page, self._server, self.name = page, server, name
        self._shots = 0
        space = (
            f"lab/workspaces/{front.replace(' ', '')}-{name.removesuffix('.ipynb')}"  # nothing else is open
        )
        if front == "no kernel":
            server.take_kernel(name)
            page.goto(f"{server.url}{space}/tree/{name}?token={server.token}")
            page.locator(".jp-Dialog-button", has_text="No Kernel").click()
            page.locator(".jp-Notebook .jp-Cell").first.wait_for()
            assert page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.session") is None
            return
        tree = f"{space}/tree" if front == "lab" else "notebooks"
        page.goto(f"{server.url}{tree}/{name}?token={server.token}")
        page.wait_for_function(
            "window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'",
            timeout=30_000,
        )

    def start(self, cell: int) -> None:
        """Begin a cell."""
        self.page.evaluate(
            """cell => {
                const book = window.jupyterapp.shell.currentWidget;
                book.content.activeCellIndex = cell;
                book.content.deselectAll();
                window.jupyterapp.commands.execute('notebook:run-cell');
            }""",
            cell,
        )

    def run(self, cell: int, timeout: float = 20) -> str:
        """Run a cell to its end; returns the text below it."""
        before = self._count(cell)
        self.start(cell)
        self.page.wait_for_function(
            """([cell, before]) => {
                const book = window.jupyterapp.shell.currentWidget;
                const count = book.content.widgets[cell].model.executionCount;
                return count !== null && count !== before
                    && book.sessionContext.session.kernel.status === 'idle';
            }""",
            arg=[cell, before],
            timeout=timeout * 1000,
        )
        return self.output(cell)

    def _count(self, cell: int) -> Any:
        return self.page.evaluate(
            "cell => window.jupyterapp.shell.currentWidget.content.widgets[cell].model.executionCount", cell
        )

    def output(self, cell: int) -> str:
        """The text below a cell."""
        return str(
            self.page.evaluate(
                "n => window.jupyterapp.shell.currentWidget.content.widgets[n].outputArea.node.innerText",
                cell,
            )
        )

    def running(self, cell: int) -> bool:
        """Whether a cell still runs."""
        prompt = "cell => window.jupyterapp.shell.currentWidget.content.widgets[cell].promptNode.innerText"
        return "*" in str(self.page.evaluate(prompt, cell))

    @property
    def panel(self) -> Any:
        """The panel."""
        return self.page.locator(".hww-panel").last

    def row(self, name: str) -> Any:
        """The controls of one watch."""
        return self.panel.locator(".hww-row", has=self.page.locator(".hww-name", has_text=name))

    def fact(self, watch: str, name: str) -> str:
        """What stands under a heading of a watch's row, such as hits."""
        row = self.row(watch)
        return str(
            row.locator("dl > div", has=self.page.locator("dt", has_text=name)).locator("dd").inner_text()
        )

    def hits(self, watch: str) -> int:
        """How many hits the row says there are."""
        return int(self.fact(watch, "hits").replace(",", "").replace("≈ ", ""))

    def wait(self, condition: Callable[[], bool], what: str, timeout: float = 15) -> None:
        """Wait until something is so."""
        end = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > end:
                self.shot("failed")
                pytest.fail(f"after {timeout} s still not: {what}")
            self.page.wait_for_timeout(50)

    def save(self) -> None:
        """Write the notebook to disk."""
        self.page.evaluate("async () => { await window.jupyterapp.shell.currentWidget.context.save(); }")

    def end_kernel(self) -> None:
        """End the kernel, as when Jupyter is closed."""
        shut = "async () => { await window.jupyterapp.shell.currentWidget.sessionContext.shutdown(); }"
        self.page.evaluate(shut)

    def do(self, command: str) -> None:
        """Run a command of the front end."""
        self.page.evaluate("name => { window.jupyterapp.commands.execute(name); }", command)

    def shot(self, step: str, what: Any = None) -> None:
        """A picture of a step, if pictures are wanted."""
        folder = os.environ.get("HWWATCH_SCREENSHOTS")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self._shots += 1
            path = Path(folder) / f"{self.name.removesuffix('.ipynb')}-{self._shots:02}-{step}.png"
            (what or self.page).screenshot(path=str(path))


@pytest.fixture
def open_book(browser: Any, server: Server) -> Iterator[Callable[..., Book]]:
    """``open_book(name, *cells, front="lab", kernel="python3")``: a new notebook, opened; cell 0 is run."""
    contexts = []

    def open_book(name: str, *cells: str, front: str = "lab", kernel: str = "python3") -> Book:
        if cells:
            server.write(name, cells, kernel)
        context = browser.new_context(viewport={"width": 1280, "height": 1000})
        context.set_default_timeout(15_000)
        contexts.append(context)
        book = Book(context.new_page(), server, name, front)
        if cells:
            book.run(0)
        return book

    yield open_book
    for context in contexts:
        context.close()
