#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# torch 2.13.0: `compare_set` of a key that is not there answers with the expected value, and sets nothing.
#
# `Store.compare_set(key, expected, desired)` returns what the key holds afterwards: `desired` where
# it has been set, the other's value where somebody else was faster. Where the key is not there and
# `expected` is not empty, nothing is set, and the answer is `expected`: the caller's own word, as if
# the store held it. So who renews a lease, or a membership, by `compare_set(key, mine, mine_again)`
# and reads the answer as "whose is it" takes it for his own after it has been deleted, and a loop
# that tries again with what it has been answered never gets on. An empty value is no value: it is
# set over by an empty `expected`, and so cannot be told from an absent key. All stores do it.
#
# Seen on 2026-11-30 with torch 2.13.0 (CPU build). Output:
#
#     TCPStore            absent: 'mine', is there: False; of somebody else: 'theirs'; empty: 'mine again'
#     TCPStore, no libuv  absent: 'mine', is there: False; of somebody else: 'theirs'; empty: 'mine again'
#     HashStore           absent: 'mine', is there: False; of somebody else: 'theirs'; empty: 'mine again'
#     FileStore           absent: 'mine', is there: False; of somebody else: 'theirs'; empty: 'mine again'
#     PrefixStore         absent: 'mine', is there: False; of somebody else: 'theirs'; empty: 'mine again'
#
# Exit status 0 while that is so, 1 once it changes.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check numpy==2.4.6 torch==2.13.0

cat >"$work/look.py" <<'PYTHON'
import sys
from datetime import timedelta

from torch.distributed import FileStore, HashStore, PrefixStore, TCPStore

limit = timedelta(seconds=5)
stores = {
    "TCPStore": TCPStore("127.0.0.1", 0, is_master=True, timeout=limit),
    "TCPStore, no libuv": TCPStore("127.0.0.1", 0, is_master=True, timeout=limit, use_libuv=False),
    "HashStore": HashStore(),
    "FileStore": FileStore(f"{sys.argv[1]}/store", 1),
    "PrefixStore": PrefixStore("of/mine/", HashStore()),
}
for name, store in stores.items():
    answer = store.compare_set("lease", "mine", "mine again").decode()
    is_there = store.check(["lease"])
    store.set("taken", "theirs")
    other = store.compare_set("taken", "mine", "mine again").decode()
    store.set("empty", "")
    empty = store.compare_set("empty", "", "mine again").decode()
    print(
        f"{name:19} absent: {answer!r}, is there: {is_there}; of somebody else: {other!r}; "
        f"empty: {empty!r}"
    )
PYTHON
"$work/venv/bin/python" -W ignore "$work/look.py" "$work" | tee "$work/seen"

sed -n 's/^#     //p' "$0" | diff - "$work/seen" || {
    echo 'compare_set no longer answers as it did' >&2
    exit 1
}
