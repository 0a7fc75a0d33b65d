#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# oras 0.2.43 (Python): a client that has read from a registry cannot write to it any more.
#
# A registry of the token protocol answers a request that lacks rights with 401 and the scope that it
# asks for, also where a token came with it that is good for less. oras then sends the same request
# with the same token once more, and takes the second 401 for the answer: it asks for a token only if
# it has none. So whichever right the first request needed is all that the client ever has. The same
# password, user and image, and the same manifest: after one read the write is refused, by a client
# that has not read it is taken. Where the registry says 403 instead of 401, a new token is asked for.
#
# Seen on 2026-11-30 with oras 0.2.43 and requests 2.34.2 against a registry of this script, which gives
# each token the scope that was asked for. Output:
#
#     write alone: 201, tokens for push
#     read, then write: 200 then 401, tokens for pull
#     read, then write, refused by 403: 200 then 201, tokens for pull push
#
# Exit status 0 while that is so, 1 once it changes.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check oras==0.2.43 requests==2.34.2

cat >"$work/look.py" <<'PYTHON'
import http.server
import json
import threading
import urllib.parse

from oras.provider import Registry

MANIFEST = {"schemaVersion": 2, "config": {"mediaType": "a/b", "digest": "sha256:" + "0" * 64, "size": 0},
            "layers": []}
given = []


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    refusal = 401

    def say(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        place = urllib.parse.urlsplit(self.path)
        if place.path != "/token":
            return self.guarded("pull", 200, json.dumps(MANIFEST).encode())
        right = urllib.parse.parse_qs(place.query)["scope"][0].rpartition(":")[2]
        given.append(right)
        self.say(200, json.dumps({"token": f"for-{right}"}).encode())

    def do_PUT(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.guarded("push", 201)

    def guarded(self, right, status, body=b""):
        token = self.headers.get("Authorization", "")
        if token == f"Bearer for-{right}":
            return self.say(status, body)
        host = self.headers["Host"]
        wanted = f'Bearer realm="http://{host}/token",service="{host}",scope="repository:tables:{right}"'
        self.say(self.refusal if token else 401, WWW_Authenticate=wanted)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
host = f"127.0.0.1:{server.server_port}"


def outcome(reads):
    given.clear()
    client = Registry(host, insecure=True, auth_backend="token")
    client.auth.set_basic_auth("user", "password")
    place = client.get_container(f"{host}/tables:v1")
    said = []
    if reads:
        url = f"http://{place.manifest_url()}"
        said.append(str(client.do_request(url, "GET").status_code))
    said.append(str(client.upload_manifest(MANIFEST, place).status_code))
    return f"{' then '.join(said)}, tokens for {' '.join(given)}"


print("write alone:", outcome(reads=False))
print("read, then write:", outcome(reads=True))
Handler.refusal = 403
print("read, then write, refused by 403:", outcome(reads=True))
PYTHON

said=$("$work/venv/bin/python" "$work/look.py")
printf '%s\n' "$said"
expected='write alone: 201, tokens for push
read, then write: 200 then 401, tokens for pull
read, then write, refused by 403: 200 then 201, tokens for pull push'
[[ $said == "$expected" ]]
