"""A steady stream of clients: `python /opt/stand-in/clients.py URL EXPECTED [CLIENTS] [SECONDS]`, in a pod.

EXPECTED is JSON: route -> {answer by model_id}. Each answer is held to what its X-Model-Id is known to say. A line is
written for each request that failed or was answered wrongly, and each second one with the counts so far.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import aiohttp

MESSAGES = [{"role": "user", "content": "What is a tuple?"}]
PAUSE_SECONDS = 0.4
API_KEY = "sk-of-all-clients"
"""Always given, as a service may begin to ask for it."""


async def client(session: aiohttp.ClientSession, url: str, expected: dict, counts: dict, number: int) -> None:
    names = list(expected)
    turn = number
    while True:
        turn += 1
        route = names[turn % len(names)]
        body = {"model": route, "messages": MESSAGES, "max_tokens": 8, "temperature": 0, "stream": bool(turn % 3)}
        began = time.time()
        try:
            async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
                text = await answer.text()
                served = answer.headers.get("X-Model-Id")
                if answer.status != 200:
                    note(counts, "failed", route, began, f"{answer.status} {text[:200]}")
                else:
                    said = content(text) if body["stream"] else json.loads(text)["choices"][0]["message"]["content"]
                    if said is None:
                        note(counts, "failed", route, began, "broken off")
                    elif expected[route].get(served) != said:
                        note(counts, "wrong", route, began, f"{served}: {said!r}")
                    else:
                        counts["good"] += 1
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            note(counts, "failed", route, began, f"{type(error).__name__}: {error}")
        await asyncio.sleep(PAUSE_SECONDS)


def content(text: str) -> str | None:
    """What a stream says; None where it was broken off, be it in vLLM's orderly way: an error, then [DONE]."""
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    if not lines or lines[-1] != "[DONE]":
        return None
    chunks = [json.loads(line) for line in lines[:-1]]
    if any("error" in chunk for chunk in chunks):
        return None
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def note(counts: dict, kind: str, route: str, began: float, what: str) -> None:
    counts[kind] += 1
    print(json.dumps({"at": began, "kind": kind, "route": route, "what": what}), flush=True)


async def main(url: str, expected: dict, clients: int, seconds: float) -> None:
    counts = {"good": 0, "failed": 0, "wrong": 0}
    # A connection for each request: where it leads is decided anew by the Service.
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    timeout = aiohttp.ClientTimeout(total=30)
    headers = {"Authorization": f"Bearer {API_KEY}"}
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:
        tasks = [asyncio.create_task(client(session, url, expected, counts, n)) for n in range(clients)]
        end = time.time() + seconds
        while time.time() < end:
            await asyncio.sleep(1)
            print(json.dumps({"at": time.time(), "counts": counts}), flush=True)
        for task in tasks:
            task.cancel()


if __name__ == "__main__":
    url, expected, clients, seconds = (*sys.argv[1:], "4", "1200")[:4]
    asyncio.run(main(url, json.loads(expected), int(clients), float(seconds)))
