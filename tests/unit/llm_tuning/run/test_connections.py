"""What the kernel's tables say of connections: the formats are those of its own /proc/net."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_tuning.run.connections import Connections

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
OTHER = "10.88.0.2"


def line(remote: str = "0200580A:A1B2", *, state: str = "01", sent_again: int = 0, probes: int = 0) -> str:
    local = "0100580A:735B" if len(remote) == 13 else "0000000000000000FFFF00000100580A:735B"
    return (
        f"   0: {local} {remote} {state} 00000010:00000000 01:00000014 {sent_again:08X}  1000 {probes:8d} 77 1 "
        "0000000000000000 20 4 30 10 -1\n"
    )


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "tcp"


def silence(table: Path, *moments: tuple[float, str], addresses: tuple[str, ...] = (OTHER,)) -> float:
    """For how long the connections to `addresses` are silent at the last moment."""
    connections = Connections([table, table.with_name("none")])
    for now, text in moments:
        table.write_text(HEAD + text)
        connections.look(now)
    return connections.silent_for(addresses, moments[-1][0])


def test_what_is_sent_again_and_again_is_silent_since_it_was_first(table: Path) -> None:
    moments = [(10.0, line()), (11.0, line(sent_again=1)), (14.0, line(sent_again=4)), (41.5, line(sent_again=7))]
    assert silence(table, *moments) == 30.5


def test_an_answer_ends_the_silence(table: Path) -> None:
    assert silence(table, (1, line(sent_again=3)), (2, line()), (3, line(sent_again=1)), (9, line(sent_again=3))) == 6
    assert silence(table, (1, line(sent_again=3)), (2, line(sent_again=1)), (9, line(sent_again=3))) == 7


def test_a_receiver_without_room_that_answers_is_not_silent_and_one_that_does_not_is(table: Path) -> None:
    assert silence(table, (1, line()), (50, line())) == 0
    assert silence(table, (1, line(probes=1)), (50, line(probes=6))) == 49


def test_only_connections_to_the_addresses_that_are_asked_for_count(table: Path) -> None:
    lost = line(sent_again=5)
    assert silence(table, (1, lost), (50, lost), addresses=("10.88.0.3",)) == 0
    assert silence(table, (1, lost), (50, lost), addresses=("10.88.0.1", "10.88.0.3")) == 0
    closing = line(sent_again=5, state="04")
    assert silence(table, (1, closing), (50, closing)) == 0


def test_addresses_are_read_in_both_families_and_loopback_is_nobodys(table: Path) -> None:
    connections = Connections([table])
    mapped = line("0000000000000000FFFF00000200580A:A1B2", sent_again=2)
    six = (
        "   1: B80D0120000000000000000001000000:735B B80D0120000000000000000002000000:A1B2 "
        + line().split(maxsplit=3)[3]
    )
    loopback = "   2: 0100007F:735B 0100007F:A1B2 " + line().split(maxsplit=3)[3]
    table.write_text(HEAD + mapped + six + loopback)
    connections.look(1)
    assert connections.own == {"10.88.0.1", "2001:db8::1"}
    connections.look(8)
    assert connections.silent_for([OTHER], 8) == 7


@pytest.mark.parametrize("broken", [line("0200580X:A1B2"), line("02:A1B2")], ids=["no number", "one byte"])
def test_a_line_that_cannot_be_read_is_passed_over_and_the_others_count(table: Path, broken: str) -> None:
    lost = line(sent_again=5)
    assert silence(table, (1, broken + lost), (41, lost + broken)) == 40
