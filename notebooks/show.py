"""Runs a notebook from top to bottom without a browser and prints its text and results.

    python notebooks/show.py notebooks/01-who-wrote-this.ipynb [--save]

With --save the outputs are kept in the notebook.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError


def show(path: Path, save: bool) -> int:
    """Execute and print; returns an exit status."""
    notebook = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(
        notebook, timeout=300, record_timing=False, coalesce_streams=True, resources=place
    )
    status = 0
    try:
        client.execute()
    except CellExecutionError as error:
        print(error, file=sys.stderr)
        status = 1
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            print(f"\n{cell.source}\n")
            continue
        print("\n".join(f"    {line}" for line in cell.source.splitlines()))
        for output in cell.get("outputs", []):
            text = output.get("text") or output.get("data", {}).get("text/plain", "")
            if text:
                print(text.rstrip("\n"))
    if save and not status:
        nbformat.write(notebook, path)
    if not status:
        print(f"\nTo open this notebook: make lab   (or any Jupyter: {path})")
    return status


if __name__ == "__main__":
    names = [name for name in sys.argv[1:] if not name.startswith("-")]
    sys.exit(show(Path(names[0]), "--save" in sys.argv))
