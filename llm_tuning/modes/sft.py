"""Supervised fine-tuning: learn the outputs, completion tokens only."""

from __future__ import annotations

from llm_tuning.core.model import ApiModel
from llm_tuning.data.rows import RowForm
from llm_tuning.data.shapes import CONVERSATIONS, INSTRUCTION, MESSAGES, PROMPT_COMPLETION, PROMPT_OUTPUT, TEXT
from llm_tuning.modes.mode import Mode

SFT: Mode[ApiModel] = Mode(
    name="sft",
    help="learn the outputs",
    title="supervised fine-tuning (the outputs are learned)",
    recipe="llm_tuning.trainers.sft",
    default_learning_rate=2e-4,
    rows=RowForm(
        mode="sft",
        shapes=(MESSAGES, CONVERSATIONS, PROMPT_OUTPUT, PROMPT_COMPLETION, INSTRUCTION, TEXT),
        accepted="{prompt, output or completion}, {messages}, {conversations}, {instruction, input, output} or {text}",
        learns_history=True,
        takes=frozenset(("tools", "reasoning")),
        advice={
            "preference": "write the chosen answer as `output`",
            "label": "keep the rows with good answers and remove the field",
        },
    ),
)
