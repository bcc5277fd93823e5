"""What `training.sharding` comes to, by the room that the ranks' devices have."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llm_tuning.run.division import GIB, LEFT_FREE, divide
from llm_tuning.run.memory import peak_bytes
from tests.support.shapes import LLAMA_3_8B, LLAMA_3_70B, make_setting

SETTING = make_setting(rank=16, tokens=4096, learned=4096, scored=4096, number_bytes=2, cuda=True, checkpointing=True)


def parts(asked: str, takes: float, room: float | None, *, processes: int = 4, nodes: int = 1, bits: int = 0) -> str:
    """The division of a base that takes `takes` GiB whole, and beside it 2 GiB of other things; `room` in GiB."""
    found = divide(
        asked,
        lambda shards: int((takes / shards + 2) * GIB),
        room=None if room is None else int(room * GIB),
        processes=processes,
        nodes=nodes,
        four_bits=bits == 4,
    )
    assert found.ranks == processes * nodes
    assert found.copies * found.shards == found.ranks
    return found.how


WHOLE = "whole on each rank"


def test_auto_divides_a_base_that_would_leave_less_than_a_tenth_free() -> None:
    assert parts("auto", 70, 80) == WHOLE
    assert parts("auto", 70.1, 80) == "in 4 parts", "72.1 of 80 GiB"
    assert LEFT_FREE == 0.1


def test_what_is_asked_for_is_done_where_there_is_somebody_to_share_with() -> None:
    assert parts("full", 1, 80) == "in 4 parts"
    assert parts("none", 700, 80) == WHOLE
    for asked in ("auto", "none", "full"):
        assert parts(asked, 700, 80, processes=1) == WHOLE


def test_on_cpus_and_in_4_bits_auto_divides_nothing() -> None:
    assert parts("auto", 700, None) == WHOLE
    assert parts("full", 700, None) == "in 4 parts"
    assert parts("auto", 700, 80, bits=4) == WHOLE


def test_auto_divides_nothing_where_parts_take_no_less() -> None:
    """Of a small base with many embeddings what is whole for a moment is more than it saves."""
    found = divide("auto", lambda shards: 10 if shards == 1 else 11, room=5, processes=2, nodes=1)
    assert found.shards == 1


@pytest.mark.parametrize("asked", ["auto", "full"])
def test_of_several_nodes_each_has_a_copy_where_its_gpus_hold_one(asked: str) -> None:
    assert parts(asked, 140, 80, nodes=2) == "in 4 parts on each of 2 nodes"
    assert parts(asked, 140, 40, nodes=2) == "in 8 parts", "37 GiB in 4 parts are more than 36"
    assert parts(asked, 1400, 40, nodes=2) == "in 8 parts", "as many as there are, though it is too much by estimate"
    assert parts(asked, 140, 80, processes=1, nodes=2) == "in 2 parts", "one GPU a node"
    assert parts("full", 140, None, nodes=2) == "in 4 parts on each of 2 nodes", "CPUs"


def test_why_is_said_with_the_figures() -> None:
    def said(asked: str, room: int | None, nodes: int = 1) -> str:
        return str(
            divide(
                asked,
                lambda n: peak_bytes(LLAMA_3_70B, LLAMA_3_70B.linears, replace(SETTING, processes=4, shards=n)),
                room=None if room is None else room * GIB,
                processes=4,
                nodes=nodes,
            )
        )

    assert said("auto", 80) == "base in 4 parts (by estimate 52.2 of a GPU's 80.0 GiB, and whole 146.0)"
    assert said("auto", 180) == "base whole on each rank (by estimate 146.0 of a GPU's 180.0 GiB)"
    assert said("full", 80, 2) == "base in 4 parts on each of 2 nodes (by estimate 52.2 of a GPU's 80.0 GiB)"
    assert said("auto", None) == "base whole on each rank (auto divides nothing on CPUs)"
    assert said("none", 80) == "base whole on each rank (as asked for)"


def test_what_fits_on_known_cards_stays_whole() -> None:
    """Where runs worked without sharding, auto changes nothing: 8B on 24 GB and more, with checkpointing."""
    for gib, shards in ((22.5, 1), (79.2, 1), (14.7, 2)):
        found = divide(
            "auto",
            lambda n: peak_bytes(LLAMA_3_8B, LLAMA_3_8B.linears, replace(SETTING, processes=2, shards=n)),
            room=int(gib * GIB),
            processes=2,
            nodes=1,
        )
        assert found.shards == shards, gib
