"""What is installed from a wheel runs from an empty folder, without the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the installed wheel in it."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    build = ["wheel", str(ROOT), "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*pip, *build], check=True, cwd=folder)
    (wheel,) = folder.glob("metarun-*.whl")
    install = ["install", str(wheel), "--no-deps", "--no-index", "--target", str(folder / "prefix")]
    subprocess.run([*pip, *install], check=True, cwd=folder)
    return folder / "prefix"


def run(prefix: Path, folder: Path, *arguments: str) -> str:
    """The installed command in an empty folder; PYTHONPATH comes before an editable install of the checkout."""
    environment = {**os.environ, "PYTHONPATH": str(prefix), "METARUN_CACHE": str(folder / "cache")}
    command = [sys.executable, str(prefix / "bin" / "metarun"), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_yaml_and_no_tests(prefix: Path) -> None:
    (wheel,) = prefix.parent.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"metarun/conf/{file.relative_to(ROOT / 'conf')}" for file in (ROOT / "conf").rglob("*.yaml")} <= names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"metarun"}


def test_an_installed_metarun_trains_and_tests_from_an_empty_folder(prefix: Path, tmp_path: Path) -> None:
    keys = ("data=sinusoid", "parallel=vmap", "train.steps=2", "train.tasks=2", "val.tasks=2", "test.tasks=2")
    run(prefix, tmp_path, *keys, "hydra.run.dir=run")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "completed"
    sources = (tmp_path / "run" / ".hydra" / "hydra.yaml").read_text()
    assert str(prefix / "metarun" / "conf") in sources
    assert str(ROOT / "conf") not in sources


def test_an_installed_metarun_explains_itself(prefix: Path, tmp_path: Path) -> None:
    page = run(prefix, tmp_path, "--help")
    assert "maml" in page and "omniglot" in page
