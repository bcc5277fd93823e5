"""What serves a base with adapters: one package for each engine, and `protocol` for all that this project needs of one.

No torch here: the operator, the agent and the launcher import it.
"""
