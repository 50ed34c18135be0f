"""Lays the package out under one root (`.build/src/workspace/…`) as it is installed, for tools that read source trees.

The folders stand at the top of the repository and are installed under `workspace` (pyproject: package-dir); mypy and
import-linter cannot follow that mapping by themselves.
"""

from __future__ import annotations

import shutil
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
TARGET = REPOSITORY / ".build" / "src" / "workspace"


def main() -> None:
    shutil.rmtree(TARGET, ignore_errors=True)
    leave_out = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "workspace", TARGET, ignore=leave_out)
    for name in ("backends", "agents"):
        shutil.copytree(REPOSITORY / name, TARGET / name, ignore=leave_out)


if __name__ == "__main__":
    main()
