# SPDX-License-Identifier: Apache-2.0
"""Virtual environments that differ in their path alone, or in what a package of theirs holds.

Owns the package, which has the name of one that FlashInfer 0.7.4 has in its fingerprint, and a
script: `pip` writes that with the path of the interpreter, and its digest into the installation
record. All else an environment takes from the import path of its caller.
"""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

PACKAGE = "nvidia_cutlass_dsl_libs_toy"
_NOTES = f"{PACKAGE}-1.0.dist-info"


def wheel(folder: Path, content: str) -> Path:
    """Write a wheel of that package: one module with this content, and one script."""
    files = {
        f"{PACKAGE}.py": f"{content}\n\ndef main() -> None: ...\n",
        f"{_NOTES}/METADATA": f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 1.0\n",
        f"{_NOTES}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{_NOTES}/entry_points.txt": f"[console_scripts]\ntoy-libs = {PACKAGE}:main\n",
    }
    rows = [f"{name},sha256={_digest(text)},{len(text)}" for name, text in files.items()]
    files[f"{_NOTES}/RECORD"] = "\n".join([*rows, f"{_NOTES}/RECORD,,", ""])
    folder.mkdir(parents=True)
    path = folder / f"{PACKAGE}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def environment(folder: Path, package: Path) -> Path:
    """Make an environment with this package alone, by `pip`; return its interpreter.

    The home directory is the environment: where there is a compiler for Rust, `pip` asks for its
    version, and that writes into it.
    """
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    subprocess.run(
        [
            sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check",
            "--no-cache-dir", "--python", str(python),
            "install", "--no-deps", "--no-index", str(package),
        ],
        env={**os.environ, "HOME": str(folder)}, check=True,
    )  # fmt: skip
    return python
