"""Every command of docs/examples.md on a real mesh, and the answer that stands below it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.mesh import Mesh, running_mesh

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```console\n\$ (.+?)\n(.+?)\n```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    given = {
        "COGITATE_TOOL_EXECUTOR_MCP_CONFIG": str(ROOT / "examples" / "tools.toml"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        patch.chdir(ROOT)
        with running_mesh(tmp_path_factory.mktemp("state")) as mesh:
            patch.setenv("COGITATE_ADDRESS", mesh.address)
            yield mesh


def test_there_is_one_of_each_kind() -> None:
    pictures = {path.stem for path in (ROOT / "examples").glob("*.png")} - {"shape"}
    assert pictures == {"board", "countdown", "receipt", "chart", "lab"}
    assert all(f"../examples/{name}.png" in PAGE for name in pictures)
    assert len(EXAMPLES) >= len(pictures) + 2


@pytest.mark.parametrize(("command", "shown"), EXAMPLES, ids=[c[:60] for c, _ in EXAMPLES])
def test_it_answers_as_the_page_says(mesh: Mesh, command: str, shown: str) -> None:
    program, *arguments = shlex.split(command)
    if program == "cogitate":
        ran = mesh.run(*arguments, "--address", mesh.address, "--json")
        assert ran.returncode == 0, ran.stderr
        verdict = json.loads(ran.stdout.splitlines()[-1])
        if "verified" in command:  # the first proof wins, and which one that is may differ
            assert verdict["proved"] and verdict["answer"].endswith("=26."), verdict["answer"]
        else:
            assert verdict["answer"] == shown
        return
    assert program == "python"
    python = [sys.executable, *arguments]
    run = subprocess.run(python, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, shown.strip()), run.stderr
