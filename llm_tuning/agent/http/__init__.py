"""The part of HTTP/1.1 that every token passes through, written by hand: one POST to vLLM, and its answer.

Everything else of the agent's HTTP is aiohttp's: its server, its parser, its client for the rare questions to vLLM.
These two files are the exception because of a measurement (tests/bench/test_agent_bench.py, 32 streaming clients on two
cores that vLLM's steps want as well): through aiohttp's client and `StreamResponse.write` a chunk woke a task and moved
a timer, which cost 62 to 88 us of the agent's processor time a chunk and 7.6 ms to the first token; handed on from
httptools' callback to the client's transport it costs 52 us and 4.4 ms, at 0.99 of the throughput without an agent.

Replace both files when aiohttp allows it: when its client hands a body's pieces to a callback without a task for each,
and its server takes them without a coroutine. Outside of `server.py` only the proxy of the fine-tuning
API knows `completion`.
"""
