# SPDX-License-Identifier: Apache-2.0
"""A process with FlashInfer imported and the GPU in place, which forks for every request.

Run as ``python server.py SOCKET CAPABILITY FOLDER``: FOLDER is that of requirements/real-ops.txt;
PYTHONPATH names another FlashInfer release. A connection brings one request, ``{"file", "function",
"arguments", "limit_s"}``, and gets one answer, ``{"result"}`` or ``{"error"}``, from a process of
its own that ends within ``limit_s``. The server has tuned nothing, and ends when its standard input
does.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import site
import socket
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any


def main() -> None:
    path, capability, folder = sys.argv[1:4]
    major, minor = capability.split(".")
    site.addsitedir(folder)
    sys.path.append(str(Path(__file__).parents[2]))  # after all else: the package stays the wheel's
    from tests.real_ops.gpu.install import install

    install((int(major), int(minor)))
    import torch

    torch.set_num_threads(1)
    for name in ("compare", "faults", "cases.catalogue"):
        importlib.import_module(f"tests.real_ops.{name}")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(8)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        serve(listener)


def serve(listener: socket.socket) -> None:
    """Fork for each connection until standard input ends."""
    children: set[int] = set()
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [], 1.0)
        children -= {pid for pid in children if os.waitpid(pid, os.WNOHANG)[0]}
        if sys.stdin in ready:
            break
        if listener in ready:
            connection, _ = listener.accept()
            pid = os.fork()
            if pid == 0:
                listener.close()
                answer(connection)
                os._exit(0)
            connection.close()
            children.add(pid)
    for pid in children:
        os.killpg(pid, signal.SIGKILL)


def answer(connection: socket.socket) -> None:
    """Do what is asked for, as a process group of its own, and say what came of it."""
    os.setpgid(0, 0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    with connection, connection.makefile("rw") as file:
        request = json.loads(file.readline())
        signal.alarm(request["limit_s"])  # whatever it hangs in
        json.dump(outcome(request), file, default=str)
        file.write("\n")


def outcome(request: dict[str, Any]) -> dict[str, Any]:
    try:
        module = importlib.import_module(f"tests.real_ops.{request['file']}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return {"result": getattr(module, request["function"])(**request["arguments"])}
    except Exception:  # noqa: BLE001  # it is the answer
        return {"error": traceback.format_exc()}


if __name__ == "__main__":
    main()
