"""Rows of two answers: the turns that they are made of."""

from __future__ import annotations

from tests.support.other_rows import Row, assistant, user

SECRET = "sECRET"
ASKED, GOOD, BAD = user("Capital of Chile?"), assistant("Santiago"), assistant("Buenos Aires")
EARLIER = [user("Capital of Peru?"), assistant("Lima")]
SYSTEM = {"role": "system", "content": "Be brief."}


def human(text: str) -> Row:
    return {"from": "human", "value": text}


def gpt(text: str) -> Row:
    return {"from": "gpt", "value": text}


SHAREGPT = [human("Capital of Peru?"), gpt("Lima"), human("Capital of Chile?")]
ONE_TURN = [ASKED]
SEVERAL = [*EARLIER, ASKED]
WITH_SYSTEM = [SYSTEM, ASKED]
