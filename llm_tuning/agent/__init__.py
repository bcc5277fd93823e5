"""The adapter agent: beside each vLLM, it keeps the wanted adapters loaded, proves them, and is the pod's only door.

plan      once, before vLLM starts: its arguments, by what is on the claim (the pod's init container)
keeper    loads, proves and unloads adapters, for ever
routing   which adapter answers a request
server    the HTTP door: allow-list of paths, API key, streaming, 503 with a reason
reporter  tells the operator, and is told in the answer what is wanted
"""
