"""Fine-tune a language model with LoRA: check data, train, register, evaluate, serve, prove.

Importing the package is cheap: torch and the training libraries are imported by a run, never here.
"""

from llm_tuning._version import __version__
from llm_tuning.errors import InputError, Problem, TryAgain, TuningError

__all__ = ["InputError", "Problem", "TryAgain", "TuningError", "__version__"]
