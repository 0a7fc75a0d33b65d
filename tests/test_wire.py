# SPDX-License-Identifier: Apache-2.0
"""What a rank says can be read by every other, whatever bytes its paths are of."""

from __future__ import annotations

import os

import pytest

from warmup_plugin.coordination import messages


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("plain", "plain"),
        ("café, 🏖️", "café, 🏖️"),
        (os.fsdecode(b"/caf\xe9\xff/x"), "/caf\ufffd\ufffd/x"),
        ("\ud83c", "\ufffd"),
        ("\\udce9", "\\ufffd"),
        (os.fsdecode(b"\xe9") + "🏖", "\ufffd🏖"),
    ],
)
def test_what_is_no_text_is_replaced(said: str, heard: str) -> None:
    body = messages.text({"path": [said]}).encode()
    assert messages.word(body, 1, "word") == {"path": [heard]}
