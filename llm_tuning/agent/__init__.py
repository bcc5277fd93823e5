"""The adapter agent: beside each engine, it keeps the wanted adapters loaded, proves them, and is the pod's only door.

plan         once, before the engine starts: its command, by what is on the claim (the pod's init container)
keeper       loads, proves and unloads adapters, for ever
adapter      the states of one adapter; `engine_life` what is remembered of one engine
aside        what may hang (a volume, a busy engine) in threads that no caller waits for
fit, weights whether an adapter fits, before it is loaded
routing      which adapter answers a request
server       the HTTP door: allow-list of paths, API key, streaming, 503 with a reason
reporter     reports to the operator, and gets in the answer what is wanted
"""
