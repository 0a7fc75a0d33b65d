# SPDX-License-Identifier: Apache-2.0
"""When SGLang's `/health` answers, which the Kubernetes probes of examples/sglang stand on."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from types import SimpleNamespace
from typing import Any

import pytest
from own_functions import take

pytestmark = pytest.mark.engine

FILE = "srt/entrypoints/http_server.py"
#: As the file has it where the environment does not say otherwise; the test asks for its end.
LIMIT_S = 3


class Manager(SimpleNamespace):
    """The tokenizer manager, as far as `/health` looks at it."""

    def generate_request(self, asked: Any, _request: Any) -> Any:
        async def answers() -> Any:
            self.rid_to_state[asked.rid] = None
            if self.answers:
                self.last_receive_tstamp = time.time() + 0.001
            yield {}

        return answers()


def health(manager: Manager) -> Any:
    """Return SGLang's own function, around this manager."""
    setting = SimpleNamespace
    named = take(
        "sglang", FILE, "health_generate", asyncio=asyncio, time=time, uuid=uuid,
        logger=logging.getLogger("sglang"), HEALTH_CHECK_TIMEOUT=LIMIT_S,
        HEALTH_CHECK_RID_PREFIX="HEALTH_CHECK", GenerateReqInput=setting, Response=setting,
        ServerStatus=setting(Starting=0, Up=1, UnHealthy=2),
        DisaggregationMode=setting(NULL=setting(value="null")),
        get_disagg=lambda: setting(disaggregation_mode="null"),
        envs=setting(
            SGLANG_DIAG_BYPASS_HEALTH_GENERATE=setting(get=lambda: False),
            SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION=setting(get=lambda: True),
        ),
        _global_state=setting(tokenizer_manager=manager),
    )  # fmt: skip
    return named["health_generate"]


@pytest.mark.parametrize(
    ("status", "answers", "code", "at_least_s", "at_most_s"),
    [
        pytest.param(0, True, 503, 0.0, 0.5, id="it starts"),
        pytest.param(1, True, 200, 1.0, 2.5, id="it serves"),
        pytest.param(1, False, 503, LIMIT_S, LIMIT_S + 1.5, id="nothing comes back"),
    ],
)
def test_it_takes_more_than_a_second(
    status: int, answers: Any, code: int, at_least_s: float, at_most_s: float
) -> None:
    """503 at once while it starts; 200 after a second at the earliest; 503 at its limit."""
    manager = Manager(
        gracefully_exit=False, server_status=status, is_generation=True, rid_to_state={},
        last_receive_tstamp=0.0, answers=answers,
    )  # fmt: skip
    request = SimpleNamespace(url=SimpleNamespace(path="/health"))
    began = time.monotonic()
    answer = asyncio.run(health(manager)(request))
    assert answer.status_code == code
    assert at_least_s <= time.monotonic() - began < at_most_s


def test_its_limit_is_twenty_seconds() -> None:
    """Which the probes' `timeoutSeconds` is above."""
    from importlib.util import find_spec
    from pathlib import Path

    spec = find_spec("sglang")
    assert spec is not None
    assert spec.origin is not None
    text = (Path(spec.origin).parent / FILE).read_text()
    assert 'int(os.getenv("SGLANG_HEALTH_CHECK_TIMEOUT", 20))' in text
