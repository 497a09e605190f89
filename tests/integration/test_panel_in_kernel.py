"""The panel in a real kernel, with a front end of few lines that keeps what it is told and clicks."""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Callable, Iterator
from queue import Empty
from typing import Any

import pytest

pytestmark = [pytest.mark.hardware, pytest.mark.slow]

BUSY = "import time\nfor i in range({n}):\n    a[3] = i\n    time.sleep(0.02)\nprint(hwwatch.watches())"
NO_ARGUMENT = "argument of the policy of a[3]: continue takes none, return and goto do"
VIEW = "application/vnd.jupyter.widget-view+json"


class Front:
    """Keeps the state of each widget, and what came when."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.client = kernel, kernel.client
        self.models: dict[str, dict[str, Any]] = {}
        self.updates: list[tuple[float, str, dict[str, Any]]] = []
        self.shown: list[tuple[str, dict[str, Any]]] = []
        self.text = ""
        self.subshell: str | None = None

    def open_subshell(self) -> None:
        """As JupyterLab does for widgets, where the kernel has subshells."""
        message = self.client.session.msg("create_subshell_request", {})
        self.client.control_channel.send(message)
        reply = self.client.control_channel.get_msg(timeout=10)
        self.subshell = reply["content"]["subshell_id"]

    def pump(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Take in messages for some time, or until something is so; returns whether it is."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if until():
                return True
            try:
                got = self.client.get_iopub_msg(timeout=0.05)
            except Empty:
                continue
            kind, content = got["msg_type"], got["content"]
            if kind == "comm_open":
                self.models[content["comm_id"]] = dict(content["data"]["state"])
            elif kind == "comm_msg" and content["data"].get("method") == "update":
                state = content["data"]["state"]
                self.models.setdefault(content["comm_id"], {}).update(state)
                self.updates.append((time.monotonic(), content["comm_id"], state))
            elif kind == "comm_close":
                self.models.pop(content["comm_id"], None)
            elif kind in ("display_data", "update_display_data", "execute_result"):
                self.shown.append((kind, content["data"]))
            elif kind == "stream":
                self.text += content["text"]
        return until()

    def run(self, code: str) -> str:
        """Run a cell; returns what it printed."""
        before = len(self.text)
        message = self.client.execute(code)
        done: list[Any] = []

        def ended() -> bool:
            while not done and self.client.shell_channel.msg_ready():
                reply = self.client.get_shell_msg(timeout=1)
                if reply["parent_header"].get("msg_id") == message:
                    done.append(reply["content"])
            return bool(done)

        assert self.pump(60, ended), self.text
        assert done[0]["status"] == "ok", (done, self.text)
        self.pump(0.3)
        return self.text[before:]

    def find(self, label: str, model: str = "") -> str:
        """The widget with such a description; tags do not count."""
        for number, state in self.models.items():
            words = re.sub("<[^>]*>", "", state.get("description") or "")
            if words == label and model in state.get("_model_name", ""):
                return number
        described = [state.get("description") for state in self.models.values()]
        pytest.fail(f"no widget {label!r} among {described}")

    def state(self, label: str) -> dict[str, Any]:
        return self.models[self.find(label)]

    def html(self, text: str) -> list[tuple[str, str]]:
        """Markup widgets that hold some text, but for the style sheet."""
        found = [(n, s["value"]) for n, s in self.models.items() if s.get("_model_name") == "HTMLModel"]
        return [(number, value) for number, value in found if text in value and ".hww-panel {" not in value]

    def send(self, number: str, data: dict[str, Any]) -> None:
        message = self.client.session.msg("comm_msg", {"comm_id": number, "data": data})
        if self.subshell is not None:
            message["header"]["subshell_id"] = self.subshell
        self.client.shell_channel.send(message)

    def set(self, label: str, **state: Any) -> None:
        """As the front end does when something is chosen or typed."""
        self.models[self.find(label)].update(state)
        self.send(self.find(label), {"method": "update", "state": state, "buffer_paths": []})

    def enter(self, label: str, text: str) -> None:
        """As when a text is typed and ended by Enter, which comes first."""
        self.send(self.find(label), {"method": "custom", "content": {"event": "submit"}})
        self.set(label, value=text)

    def click(self, label: str) -> None:
        self.send(self.find(label), {"method": "custom", "content": {"event": "click"}})

    def hits(self, watch: str = "a[3]") -> int:
        """What the row says."""
        facts = self.html("hww-facts")[0][1]
        found = re.search(r"<dt>hits</dt><dd>(?:≈ )?([\d,]+)</dd>", facts)
        assert found is not None, facts
        return int(found[1].replace(",", ""))


@pytest.fixture
def front(one_kernel: Any) -> Iterator[Front]:
    front = Front(one_kernel)
    front.run(
        "%unload_ext hwwatch\n%load_ext hwwatch\na = np.zeros(8)\n"
        "%watch a[3]\nw = hwwatch.watches()[0]\nimport threading\n"
        "def feeds():\n    return [t.name for t in threading.enumerate()].count('hwwatch-panel')"
    )
    yield front
    assert front.run("%unload_ext hwwatch\n%load_ext hwwatch\nprint(feeds())") == "0\n"


def test_shown_is_live_widget_and_table_and_text(front: Front) -> None:
    front.run("%watch_panel")
    data = front.shown[0][1]
    assert data[VIEW]["model_id"] in front.models
    assert "<td>a[3] (float64, 8 bytes" in data["text/html"]
    assert data["text/plain"].startswith("watch ")
    assert front.run("print(feeds())") == "1\n"
    front.run("a[3] = 7\na[3] = 8")
    kind, page = front.shown[-1]
    assert kind == "update_display_data"
    assert re.search(r"<td>7.0 → 8.0</td><td>In \[\d+]:2</td>", page["text/html"])


def test_counts_rise_while_a_cell_runs_and_not_too_often(front: Front) -> None:
    front.run("%watch_panel")
    front.updates.clear()
    begun = time.monotonic()
    front.client.execute(BUSY.format(n=150))
    assert front.pump(10, lambda: front.hits() > 20)
    assert "Watch 1" not in front.text, "the cell has ended"
    assert front.pump(20, lambda: "Watch 1" in front.text)
    seconds = time.monotonic() - begun
    facts = front.html("hww-facts")[0][0]
    status = front.html('role="status"')[0][0]
    assert 5 <= sum(number == facts for _, number, _ in front.updates) <= 10 * seconds + 1
    assert 1 <= sum(number == status for _, number, _ in front.updates) <= seconds + 2
    assert front.pump(3, lambda: front.hits() == 150)


def test_click_takes_effect_while_a_cell_runs(front: Front) -> None:
    if front.run("print(get_ipython().kernel._supports_kernel_subshells)") != "True\n":
        pytest.skip("this ipykernel has no subshells")
    front.open_subshell()
    front.run("%watch_panel")
    front.client.execute(BUSY.format(n=200))
    assert front.pump(10, lambda: front.hits() > 10)
    front.set("Mode of a[3]", index=1)
    assert front.pump(2, lambda: bool(front.html("last reader")))
    front.set("armed of a[3]", value=False)
    assert front.pump(2, lambda: bool(front.html("· disarmed")))
    assert "Watch 1" not in front.text, "the cell has ended"
    assert not front.html("queued until")
    assert front.pump(20, lambda: "Watch 1" in front.text)
    assert "'a[3]' r 8 bytes" in front.text
    assert "disarmed" in front.text


def test_click_that_has_to_wait_is_called_queued(front: Front) -> None:
    front.run("%watch_panel")
    front.set("armed of a[3]", value=False)  # on the main thread: no subshell was opened
    assert front.pump(3, lambda: bool(front.html("· disarmed")))
    front.client.execute(BUSY.format(n=100))
    assert front.pump(3, lambda: bool(front.html("they are queued until it ends")))
    front.set("armed of a[3]", value=True)
    assert front.pump(20, lambda: "Watch 1" in front.text)
    assert "disarmed" in front.text
    assert front.pump(3, lambda: not front.html("they are queued until it ends"))
    assert front.run("print(w.armed)") == "True\n"


def test_thread_ends_with_the_last_panel(front: Front) -> None:
    front.run("p, q = hwwatch.panel(), hwwatch.panel()\ndisplay(p, q)")
    assert front.run("print(feeds())") == "1\n"
    front.run("p.close()")
    assert front.run("print(feeds())") == "1\n"
    front.click("Close panel")
    front.pump(1)
    assert front.run("print(feeds())") == "0\n"
    panels = [n for n, state in front.models.items() if state.get("_view_count") is not None]
    assert panels == []
    assert not any(state.get("description") == "Close panel" for state in front.models.values())
    kind, page = front.shown[-2]
    assert (kind, VIEW in page, "<table" in page["text/html"]) == ("update_display_data", False, True)


def test_thread_ends_when_the_output_is_cleared(front: Front) -> None:
    front.run("%watch_panel")
    root = next(n for n, state in front.models.items() if state.get("_view_count") is not None)
    for count, feeds in ((1, 1), (0, 0), (1, 1), (2, 1), (0, 0)):
        front.send(root, {"method": "update", "state": {"_view_count": count}, "buffer_paths": []})
        front.pump(0.5)
        assert front.run("print(feeds())") == f"{feeds}\n"


def test_two_panels_agree(front: Front) -> None:
    front.run("p, q = hwwatch.panel(), hwwatch.panel()\ndisplay(p, q)")
    front.set("Mode of a[3]", index=2)

    def modes() -> list[int]:
        return [s["index"] for s in front.models.values() if s.get("_model_name") == "RadioButtonsModel"]

    assert front.pump(3, lambda: modes().count(2) == 2), modes()
    assert front.run("print(w.mode)") == "rw\n"
    front.run("w.policy = 'skip'\nw.when = 'new > 3'\nhwwatch.watch(a[5:6], name='b')")
    assert front.pump(3, lambda: len(front.html("hww-facts")) == 4)
    shown = [s["value"] for s in front.models.values() if s.get("placeholder", "").startswith("every hit")]
    assert sorted(shown) == ["", "", "new > 3", "new > 3"]
    front.run("hwwatch.unwatch('b')")
    assert front.pump(3, lambda: len(front.html("hww-facts")) == 2)


def test_forbidden_controls_are_disabled_and_say_why(front: Front) -> None:
    front.run(
        "import ctypes\nlibc = ctypes.CDLL(None)\nhwwatch.watch(libc.labs, 'x', name='labs')\n%watch_panel"
    )
    mode, argument = front.state("Mode of labs"), front.state(NO_ARGUMENT)
    assert (mode["disabled"], mode["_options_labels"]) == (True, ["X"])
    assert "this is code" in mode["tooltip"]
    assert (argument["disabled"], argument["tooltip"]) == (True, "continue takes none, return and goto do")
    assert front.state("Policy of a[3]")["_options_labels"] == ["continue", "skip", "goto"]
    front.set("Mode of a[3]", index=1)
    assert front.pump(3, lambda: front.state("Policy of a[3]")["_options_labels"] == ["continue", "goto"])
    assert front.html("a read cannot be skipped")
    front.set("Policy of labs", index=2)
    value = "argument of the policy of labs: the value to return, such as 42"
    assert front.pump(3, lambda: any(value in (s.get("description") or "") for s in front.models.values()))
    assert not front.state(value)["disabled"]
    front.set(value, value="42")
    front.pump(0.5)
    assert front.run("print(libc.labs(-3))") == "42\n"


def test_errors_are_shown_and_change_nothing(front: Front) -> None:
    front.run("%watch_panel")
    front.set("Condition of a[3]", value="new <")
    assert front.pump(3, lambda: bool(front.html("at column 6")))
    front.enter("Watch", "nosuch[3]")
    assert front.pump(3, lambda: bool(front.html("nosuch")))
    assert all('role="alert"' in value for _, value in front.html("nosuch"))
    front.set("Watch", value="a[6]")  # left without Enter: not meant yet
    front.enter("Watch", "a[5]")
    assert front.pump(3, lambda: len(front.html("hww-facts")) == 2)
    assert not front.html("nosuch")
    assert front.run("print([w.name for w in hwwatch.watches()], w.when)") == "['a[3]', 'a[5]'] None\n"
    front.click("Remove a[5]")
    front.click("Disarm all")
    assert front.pump(3, lambda: bool(front.html("· disarmed")))
    assert front.run("print([w.armed for w in hwwatch.watches()])") == "[False]\n"


def test_its_own_reads_and_calls_are_no_hits(front: Front) -> None:
    front.run(
        "w.mode = 'rw'\nimport ctypes\nx = hwwatch.watch(ctypes.CDLL(None).process_vm_readv, 'x', name='x')"
    )
    front.run("%watch_panel")
    front.run("a[3] = 5")
    assert front.pump(3, lambda: bool(front.html("5.0</dd>")))
    front.pump(1.5)
    assert front.run("print(w.hits, w.counted, x.hits)") == "1 1 0\n"


def test_table_filters_follows_and_pauses(front: Front) -> None:
    front.run("hwwatch.watch(a[5:6], name='b')\n%watch_panel")
    front.run("for i in range(30):\n    a[5] = i\n    a[3] = -i\na[3] = 99")

    def table() -> str:
        return front.html("hww-hits")[0][1]

    assert front.pump(3, lambda: "98" not in table() and "-29.0 → 99.0" in table())
    front.set("Hits of", index=2)
    assert front.pump(3, lambda: table().count("<td>b</td>") == 10)
    assert "28.0 → 29.0" in table()
    front.set("Last", index=1)
    assert front.pump(3, lambda: table().count("<td>b</td>") == 20)
    front.set("Hits of", index=0)
    front.set("Line contains", value="]:4")
    assert front.pump(3, lambda: table().count("<tr>") == 2), table()
    front.set("Line contains", value="")
    front.set("follow new hits", value=False)
    front.pump(1)
    before = table()
    front.run("a[3] = 1234")
    front.pump(1)
    assert table() == before
    front.set("follow new hits", value=True)
    assert front.pump(3, lambda: "99.0 → 1234.0" in table())
    front.click("Clear hits")
    assert front.pump(3, lambda: "no hits yet" in table())


def test_flood_leaves_the_program_its_time(front: Front) -> None:
    flood = (
        "import time\nbest = 0\nfor _ in range(6):\n    n, end = 0, time.monotonic() + 0.25\n"
        "    while time.monotonic() < end:\n        a[3] = n; n += 1\n    best = max(n, best)\nprint(best)"
    )
    alone = int(front.run(flood))
    front.run("%watch_panel")
    shown = int(front.run(flood))
    front.pump(1)
    assert front.run("print(w.lost)") == "0\n"
    assert front.pump(3, lambda: str(front.hits()) == front.run("print(w.hits)").strip())
    assert shown > 0.6 * alone


def test_terminal_gets_text(in_shell: Callable[..., Any]) -> None:
    *_, shown, light = in_shell(
        "%watch a[3]\na[3] = 5",
        "%watch_panel",
        "import sys, threading\nprint(repr(hwwatch.panel()).count('0.0 → 5.0'), 'ipywidgets' in sys.modules, "
        "'hwwatch-panel' in [t.name for t in threading.enumerate()])",
    )
    assert "a[3] (float64, 8 bytes" in shown.out
    assert "0.0 → 5.0" in shown.out
    assert ast.literal_eval(f"[{light.out.strip().replace(' ', ',')}]") == [1, False, False]


FORK = """\
import os, signal, time
codes = []
for _ in range(20):
    if not (pid := os.fork()):
        signal.alarm(5)
        os._exit(0 if 'a[3]' in repr(p) and feeds() == 0 else 1)
    codes.append(os.waitpid(pid, 0)[1])
print(set(codes))
"""


def test_forked_child_is_not_held_up(front: Front) -> None:
    front.run("p = hwwatch.panel()\np")
    assert front.run(FORK) == "{0}\n"
    assert front.run("print(feeds())") == "1\n"
