# SPDX-License-Identifier: Apache-2.0
"""Ranks of an older build: both sides hear why there is no session, at once.

What a build from before the protocol had a number leaves in a store and reads there is written out
here, as of commit 1f43ee7, and how one of protocol 2 reads a card.
"""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

import msgspec
import pytest
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented, not listed

from warmup_plugin.coordination import decisions, roll_call, versions
from warmup_plugin.coordination.offers import Offer, read_offer
from warmup_plugin.coordination.opening import Opening
from warmup_plugin.coordination.roll_call import MOST_CHOICES
from warmup_plugin.coordination.rounds import Round
from warmup_plugin.coordination.seals import KEY_BYTES
from warmup_plugin.coordination.versions import BUILD, of_this_build, readable_by_older
from warmup_plugin.engines.readiness import Readiness
from warmup_plugin.errors import SessionError
from warmup_plugin.settings import Settings

REMEDY = "install one version on all ranks"
OLDER = f"its warmup-plugin is older than {BUILD}, which is another rank's: must be the same"
#: What an older rank finds on rank 0's card.
ON_CARD = (
    f"rank 0's warmup-plugin is {BUILD}, this rank's is older (protocol 2, or without a number): "
    f"must be the same: {REMEDY}"
)
BOUND_S = 20.0
#: The digest of all fields that cross ranks, by the number of the protocol that has them.
FIELDS = {3: "4a0c927cb6ea6c76"}


def test_a_change_of_what_crosses_ranks_is_another_protocol() -> None:
    """Two builds of one version are told apart by this number: count `PROTOCOL` up."""
    rounds = [found for found in vars(decisions).values() if isinstance(found, Round)]
    kinds = [kind for held in rounds for kind in (held.vote, held.decision)]
    schemas = msgspec.json.schema_components(kinds, ref_template="{name}")[1]
    for schema in schemas.values():
        schema.pop("description", None)
    names = sorted((held.name, held.vote.__name__, held.decision.__name__) for held in rounds)
    said = json.dumps([names, schemas], sort_keys=True)
    found = hashlib.sha256(said.encode()).hexdigest()[:16]
    assert {versions.PROTOCOL: found} == FIELDS


# -- an engine's ranks -----------------------------------------------------------------------------


@pytest.mark.parametrize("older", [0, 1])
def test_an_engines_ranks_hear_of_it_on_both_sides(older: int) -> None:
    """The older rank has left its word and waits for all words, or for the decision."""
    store: Any = vars(dist)["HashStore"]()
    store.set(f"warmup_plugin//0/{older}", json.dumps({"reason": ""}))
    began = time.monotonic()
    link, found = Readiness(store, "0", 1 - older, 2, Settings()).meet("")
    assert link is None
    assert found == f"rank {older}: {OLDER}: {REMEDY}"
    assert time.monotonic() - began < BOUND_S
    assert store.check([f"warmup_plugin//0/{name}" for name in (1 - older, "decision")])
    told = json.loads(store.get(f"warmup_plugin//0/{1 - older}"))["reason"]
    assert BUILD in told
    assert REMEDY in told
    assert store.get("warmup_plugin//0/decision").decode() == found


# -- a runner of its own ---------------------------------------------------------------------------


def test_an_older_rank_0_hears_of_it_by_the_record_of_its_first_meeting() -> None:
    """It has opened a store, and waits there for this rank's word; what it finds is a refusal."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store.set("nonce", "n")
    card = {"hosts": [], "port": store.port, "nonce": "n", "machine": "m", "greeting": ""}
    with pytest.raises(SessionError) as caught:
        of_this_build(card, 1)
    assert str(caught.value) == f"rank 0: {OLDER}: {REMEDY}"
    record = json.loads(store.get("open/record"))
    assert record == {"go": "refuse", "reason": str(caught.value)}
    assert store.check(["open/1", "bye/1"])


def test_an_older_rank_takes_rank_0s_first_card_for_an_error() -> None:
    """It raises with the text under ``error``; a rank of this build reads the card as it was."""
    opening = Opening(0, 2, Settings())
    card = opening.offer().to_json()
    opening.close()
    sent = readable_by_older(card)
    assert sent["error"] == ON_CARD
    assert of_this_build(dict(sent), 1) == card
    broken = readable_by_older({"error": "no descriptor"})
    assert of_this_build(dict(broken), 1) == {"error": "no descriptor"}


def as_protocol_2(card: dict[str, Any]) -> str:
    """Return what a rank of commit 92a8e8e cannot do with a card, as it says in the roll call."""
    if card.pop("plugin", None) is not None and "way" in card:
        card.pop("error", None)
    known = {"way", "choices", "nonce", "place", "leader", "greeting", "error"}
    assert card.keys() <= known, "else it says that it cannot read the card, and no more"
    return f"cannot open a store: {card['error']}" if "error" in card else ""


def test_a_rank_of_protocol_2_says_which_builds_differ() -> None:
    """All ranks hear what it says: both builds, and the remedy."""
    opening = Opening(0, 2, Settings())
    said = as_protocol_2(readable_by_older(opening.offer().to_json()))
    opening.close()
    assert said == f"cannot open a store: {ON_CARD}"
    assert REMEDY in said


@pytest.mark.parametrize(
    ("plugin", "named"),
    [
        pytest.param("0.1 (protocol 2)", "0.1 (protocol 2)", id="protocol 2"),
        pytest.param(
            {"build": "9.0 (protocol 9)", "card": {"new": 1}}, "9.0 (protocol 9)", id="a later one"
        ),
        pytest.param({"more": 1}, "older", id="none of these"),
    ],
)
def test_a_card_of_another_protocol_is_refused_with_the_remedy(plugin: Any, named: str) -> None:
    """This rank says so in the roll call: both builds, and nothing of the card."""
    card = {"way": "loopback", "choices": [["127.0.0.1", 1]]} if plugin == named else {}
    opening = Opening(1, 2, Settings())
    sent = {"error": "x", "plugin": plugin, **card}
    failure = opening.answer(read_offer(of_this_build(sent, 1))).failure
    opening.close()
    assert failure.startswith("cannot open a store: rank 0: its warmup-plugin is ")
    assert named in failure
    assert BUILD in failure
    assert REMEDY in failure


def test_the_first_card_is_never_too_large() -> None:
    """With all that may be on it, and the longest of each."""
    address = "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"
    offer = Offer(
        "loopback", [(address, 65535)] * MOST_CHOICES, "f" * 16, f"{'m' * 64}/{2**32}", "h" * 64,
        "g" * 100, "f" * 2 * KEY_BYTES,
    )  # fmt: skip
    sent = json.dumps(readable_by_older(offer.to_json())).encode()
    assert len(sent) <= roll_call._CARD_BYTES


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        pytest.param({"way": 7}, "Expected `str`, got `int` - at `$.way`", id="another type"),
        pytest.param({"way": "none", "more": 1}, "unknown field `more`", id="one too many"),
        pytest.param([], "Expected `object`, got `array`", id="no object"),
    ],
)
def test_an_offer_that_cannot_be_read_is_said_by_the_rank_that_reads_it(
    fields: object, said: str
) -> None:
    """It takes part in the roll call, so that the others do not wait for it."""
    found = read_offer(fields)
    assert said in found.error
    opening = Opening(1, 2, Settings())
    assert opening.answer(found).failure == f"cannot open a store: {found.error}"
