# SPDX-License-Identifier: Apache-2.0
"""The fleet: tables that hosts without a shared file system give each other, by an object store.

    v1/bundle/<sha256>                          an archive of one identity's table, never replaced
    v1/ptr/<FlashInfer>/<arch>/<identity>       the pointer: which bundle is the latest
    v1/lease/<FlashInfer>/<arch>/<identity>     which host tunes it for the others, while one does
    v1/ptr/.../<identity>/<number>              the same in a folder, where nothing can be swapped

`location.py` reads the setting and `objects.py` talks to the store. `pointer.py` and `bundle.py`
are what lies there, `signing.py` says by whom it is. `pull.py` and `push.py` are what a start does
with it, `single_flight.py` with the lease (`lease.py`), in the process of `worker.py`; `client.py`,
`waiting.py` and `turn_process.py` are the engine's side of that process. `quarantine.py` is what
this host knows of bundles with which its starts have died. An engine imports these four and
`location.py` alone, and only where a fleet is set: the client library lives in a process of its
own, since its threads do not survive a fork, and since a process is what can be ended while it
waits.

`registry.py` is another such process: it puts images of tables into a registry and takes them from
there for the command line; no start asks it. `reference.py` says which image is meant.
"""
