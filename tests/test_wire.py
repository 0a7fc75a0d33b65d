# SPDX-License-Identifier: Apache-2.0
"""What a rank says can be read by every other, whatever bytes its paths are of."""

from __future__ import annotations

import os

import pytest

from warmup_plugin.coordination import messages
from warmup_plugin.coordination.messages import Failed


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
    found = messages.read(Failed, messages.said("x", Failed(1, said)).encode(), 1, "word")
    assert found == Failed(1, heard)
