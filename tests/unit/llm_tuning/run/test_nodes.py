"""When a node of a run counts as there, by what name servers say."""

from __future__ import annotations

import socket

import pytest

from llm_tuning.run import nodes

HOST, SERVICE = "faq-train-1.faq-train", "faq-train"


@pytest.mark.parametrize(
    ("host", "service", "is_known"),
    [
        (None, None, True),
        (socket.EAI_NONAME, None, False),
        (socket.EAI_NONAME, socket.EAI_AGAIN, False),
        (socket.EAI_AGAIN, None, False),  # a server outside is asked last, and cannot be reached
        (socket.EAI_AGAIN, socket.EAI_AGAIN, True),  # no server answers: waited for as long as for a node
    ],
)
def test_a_pod_that_does_not_run_yet_is_not_known_where_servers_outside_are_not_reached(
    monkeypatch: pytest.MonkeyPatch, host: int | None, service: int | None, is_known: bool
) -> None:
    errors = {HOST: host, SERVICE: service}

    def getaddrinfo(name: str, port: None) -> list[object]:
        if (error := errors[name]) is not None:
            raise socket.gaierror(error, "not found")
        return []

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert nodes._is_known(HOST) is is_known
