"""What training pods and agents report to the operator: certificates, tokens, the protocol and its server.

Nothing is imported here: `inference_service` and `pods` use `audience` and must not load a web server.
"""
