"""`binder/` keeps in step with the project; `make binder` proves that it works."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
BINDER = ROOT / "binder"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_environment() -> None:
    """The dependencies of pyproject.toml, no more and no less, for a Python that it allows."""
    assert (BINDER / "requirements.txt").read_text().split() == PROJECT["dependencies"]
    (version,) = re.fullmatch(r"python-(\d+\.\d+)\n", (BINDER / "runtime.txt").read_text()).groups()  # type: ignore[union-attr]
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]


def test_compiler_is_installed() -> None:
    """All of the README's Debian packages, but for those that stand for the image's own Python."""
    (line,) = re.findall(r"`sudo apt install (gcc [^`]*)`", (ROOT / "README.md").read_text())
    wanted = {package for package in line.split() if not package.startswith("python3")}
    assert wanted <= set((BINDER / "apt.txt").read_text().split())


def test_build_script() -> None:
    script = BINDER / "postBuild"
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/bin/bash\n")
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "--no-deps --editable ." in script.read_text()


def test_the_quickstart_is_opened() -> None:
    """In JupyterLab and in Notebook, the notebook of `make quickstart`."""
    settings = json.loads((BINDER / "jupyter_config.json").read_text())
    quickstart = re.findall(r"notebooks/show\.py (\S+\.ipynb)", (ROOT / "Makefile").read_text())
    for app, prefix in (("LabApp", "/lab/tree/"), ("JupyterNotebookApp", "/notebooks/")):
        assert [settings[app]["default_url"].removeprefix(prefix)] == quickstart
    assert (ROOT / quickstart[0]).is_file()
    assert "jupyter_config.json" in (BINDER / "postBuild").read_text()
