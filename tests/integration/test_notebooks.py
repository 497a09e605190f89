"""The notebooks: each runs from top to bottom and names the right culprits, as in its saved outputs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))

# What must stand in the outputs of a notebook, in this order: a regular expression for each.
FACTS = {
    "01-who-wrote-this": [
        r"function +report\n.*\n.*\nsymbol +smooth\+0x\w+\nmodule +libstation\.so\n",
        r"In \[\d+\]:6 +1 +\[1, 2\] .*row /= row\.sum\(\) +normalise +DOUBLE_divide",
        r"In \[\d+\]:14 +1 +\[5\] .*np\.add\(new, 0\.01, out=state\) +step +DOUBLE_add",
    ],
    "02-the-request-of-2010": [
        r"needs 1 of 4 debug registers, 0 free; taken by write \(1\), both \(1\), read \(1\), run \(1\)",
        r" write +write +0 +6 .*\n.* both +write +0 +7 .*\n",
        r" both +read +7 +7 .*\n.* read +read +8 +8 .*\n.* run +execute ",
        r"earlier .*29315.*control.*\n.*later .*29315.*control.*\n.*child .*29315.*control",
        r"\(2, 3\)",
        r"write +control\+\S+ +movsd .* native\n.*execute +steps\S* +add .* native",
        r"undisturbed: 10101\nnot executed, it adds 1: 10100\nnot executed, it adds 1: 10100\n",
        r"\(\{10000\}, 4000, 4000, 0\)",
        r"broken: +29315\nReturn\(18\.0\): 200\nGoto spare: +150",
        r"power +2 +sensor +returned\n.*power +2 +sensor +jumped",
        r"150\.0 +29315\.0 +control\+\S+ +skipped",
        r"175\.0 +29315\.0 +control\+\S+ +skipped\n.*175\.0 +180\.0 +\S+ +native",
        r"180\.0 +29315\.0 +control\+\S+ +skipped\n.*180\.0 +180\.0 +\S+ +native",
    ],
    "03-threads-and-processes": [
        r"\(np\.int64\(750001\), np\.float64\(225\.0\)\)",
        # On a busy machine both stores may be done before the first trap looks at the value.
        r"part_(?P<one>\d) +100\.0 .*DOUBLE_multiply.*\n.*part_(?!(?P=one))\d .* 225\.0 .*DOUBLE_multiply",
        r"taken (?P<sum>\d+), in the total (?!(?P=sum))\d+\n",
        r"desk 1 +8 +8\ndesk 2 +8 +8\ndesk 3 +8 +8",
        r"(?P<who>desk \d) +read .* desk +15\n(.* desk +15\n)*.*(?!(?P=who))desk \d +write .* desk +15\n"
        r"(.* desk +15\n)*.*(?P=who) +write .* desk +15\n",
        r"taken (?P<sum>\d+), in the total (?P=sum)\n",
    ],
    "04-hunting-a-nan": [
        r"\(349, array\(\[5, 6\]\)\)",
        r"1 hit by 1 line\n.*\n.*-1\.38\S+ → nan +slope\.depth\[:-1\] -= .* +flow +DOUBLE_subtract",
        r"1 hit by 1 line\n.*\n.* → nan +np\.power\(upper, 5 / 3, out=slope\.flux\) +flow +DOUBLE_power",
        r"symbol +DOUBLE_power\S*\nmodule +_multiarray_umath\S+\ninstruction +v?mov\S* ",
        r"negative: 1 hit by 1 line\n.*\n.* → -1\.38\S+ +slope\.depth\[wet\] -= loss +seep ",
        r"no hits(: all 12000 accesses that the CPU counted are left out|.*: kernel accesses are not seen)",
    ],
    "05-what-the-hardware-does-not-show": [
        r"a\[3\] is 1\.0; hits 0, counted 0, lost 0; kernel accesses not seen: kernel=False was asked for\n",
        r"a\[3\] is 2\.0; hits (1, counted 1, lost 0; .* seen|0, counted 0, lost 0; .* not seen: .+)\n",
        r"a\[3\] is 100\.0; hits 0, counted 0\n",
        r"one\[8\] is 65; hits 0, counted 0\none\[8\] is 66; hits 1, counted 1\n",
        r"a\[3\] is 9\.0; hits 0, counted (10, lost 10\n\['blocks SIGTRAP: |0, lost 0\n.* is not armed)",
        r"data\[3\]: the memory of its bytearray has moved; paused; `w\.retarget\(\)`",
        r"0 → 1, then unseen, then 2 → 3\n",
        r" 0 +5 +7 +L_set\S* +False\n(.* True\n)*.* 7 +11 +L_set\S* +True\n",
        r"length 3\s+access .*\n.*\n\d+ +read +1 +strlen",
        r"Watching works: .*\ndebug registers: 4 of 4 free\ntest access: trapped",
        r"a\[3\]: no hits",
    ],
}
PICTURES = {"03-threads-and-processes": 1, "04-hunting-a-nan": 1}


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def text(notebook: Any) -> str:
    """All that the cells gave, as a terminal would show it."""
    return "\n".join(
        output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs(notebook)
    )


def check(notebook: Any, name: str) -> None:
    found, at = text(notebook), 0
    for fact in FACTS[name]:
        match = re.compile(fact).search(found, at)
        assert match, f"{fact!r} is not in\n{found[at:]}"
        at = match.end()
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    assert not [output for output in outputs(notebook) if output.get("name") == "stderr"]
    pictures = [output for output in outputs(notebook) if "image/png" in output.get("data", {})]
    assert len(pictures) == PICTURES.get(name, 0)


def test_every_notebook_has_its_facts() -> None:
    assert sorted(FACTS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_saved_outputs(name: str) -> None:
    """They are of one run from top to bottom, and tell nothing of the machine that it was on."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    check(notebook, name)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    told = "\n".join(str(output) for output in outputs(notebook))
    assert re.findall(r"(?<![\w.])/(?:home|root|tmp|work|usr|opt|var|mnt|srv)\b\S*", told) == []
    assert "site-packages" not in told


@pytest.mark.slow
@pytest.mark.hardware
@pytest.mark.parametrize("backend", ["perf", "ptrace"])
@pytest.mark.parametrize("name", NAMES)
def test_executes(name: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is, in a kernel of its own; a cell that raises fails the test."""
    monkeypatch.setenv("HWWATCH_BACKEND", backend)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=100, coalesce_streams=True, resources=place).execute()
    check(notebook, name)
