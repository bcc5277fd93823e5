"""Progress that training pods report to the operator: certificates, tokens, the protocol and its server.

Nothing is imported here: `resources` uses `audience` and must not load a web server.
"""
