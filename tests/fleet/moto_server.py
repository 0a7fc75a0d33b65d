# SPDX-License-Identifier: Apache-2.0
"""moto's S3 server as a process of its own: prints its address, and ends with its standard input.

Conditions on ETags, create-only writes and listings are moto's; the client under test is the real
one. Not covered by it: permissions, of which moto knows none unless asked.
"""

from __future__ import annotations

import sys
import urllib.request

from moto.server import ThreadedMotoServer


def main() -> None:
    """Serve one bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    request = urllib.request.Request(f"{address}/tables", method="PUT")  # noqa: S310  # our own server
    urllib.request.urlopen(request).close()  # noqa: S310  # as above
    print(address, flush=True)  # noqa: T201  # the address is its answer
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main()
