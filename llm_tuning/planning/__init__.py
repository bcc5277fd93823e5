"""Memory, steps and time of a tuning run before it is started: estimates by formulas that stand beside their sources.

Nothing is loaded and nothing is measured; see `memory` and `work` for what is left out.
"""

from llm_tuning.planning.plan import Plan, make_plan
from llm_tuning.planning.verdict import Verdict

__all__ = ["Plan", "Verdict", "make_plan"]
