"""Rows of well-known data sets, in short, by the schemas that they are published with."""

from __future__ import annotations

import json
from typing import Any

Row = dict[str, Any]

_DIALOGUE = "\n\nHuman: City {}?\n\nAssistant: Which land?\n\nHuman: France.\n\nAssistant: {}"
_WEATHER = {"name": "weather", "description": "Of a city."}
_TYPED = {"city": {"type": "str", "description": "Where"}, "days": {"type": "int, optional", "description": "n"}}
_SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_CALLED = [{"name": "weather", "arguments": {"city": "Rome"}}]
_GLAIVE = (
    "USER: Weather {}?\n\n\nASSISTANT: <functioncall> "
    '{{"name": "weather", "arguments": \'{{"city": "Rome"}}\'}} <|endoftext|>\n\n\n'
    'FUNCTION RESPONSE: {{"t": 20}}\n\n\nASSISTANT: It is 20. <|endoftext|>'
)
_SOLUTION = "<|begin_of_solution|>\n\nIt is 2.\n\n<|end_of_solution|>"
_THOUGHT = f"<|begin_of_thought|>\n\nAdd them.\n\n<|end_of_thought|>\n\n{_SOLUTION}"
_RATED = {"annotations": {"helpfulness": {"Rating": "5"}}, "custom_system_prompt": "p", "critique": "c"}


def _chat(question: str, answer: str) -> list[Row]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _gemini(role: str, text: str) -> Row:
    return {"role": role, "parts": [{"text": text}]}


def rows_of(build: Any) -> list[Row]:
    return [build(number) for number in range(3)]


ROWS: dict[str, list[Row]] = {
    "xLAM (xlam-function-calling-60k)": rows_of(
        lambda n: {
            "id": n,
            "query": f"Weather {n}?",
            "answers": json.dumps(_CALLED),
            "tools": json.dumps([_WEATHER | {"parameters": _TYPED}]),
        }
    ),
    "Glaive (glaive-function-calling-v2)": rows_of(
        lambda n: {
            "system": "SYSTEM: You are a helpful assistant with access to the following functions. Use them if "
            f"required -\n{json.dumps(_WEATHER | {'parameters': _SCHEMA}, indent=4)}\n",
            "chat": _GLAIVE.format(n),
        }
    ),
    "s1K": rows_of(
        lambda n: {
            "solution": "2",
            "question": f"1+1 {n}",
            "cot_type": "math",
            "metadata": "{}",
            "cot": None,
            "thinking_trajectories": ["Add them."],
            "attempt": "It is 2.",
        }
    ),
    "s1K-1.1": rows_of(
        lambda n: {
            "solution": "2",
            "question": f"1+1 {n}",
            "gemini_thinking_trajectory": "Hm.",
            "gemini_attempt": "2",
            "deepseek_thinking_trajectory": "Add them.",
            "deepseek_attempt": "It is 2.",
            "deepseek_grade": "Yes",
        }
    ),
    "OpenThoughts (metadata)": rows_of(
        lambda n: {
            "problem": f"1+1 {n}",
            "deepseek_reasoning": "Add them.",
            "deepseek_solution": "It is 2.",
            "ground_truth_solution": "2",
            "domain": "math",
        }
    ),
    "UltraFeedback": rows_of(
        lambda n: {
            "source": "s",
            "instruction": f"City {n}?",
            "models": ["a", "b"],
            "completions": [
                _RATED | {"model": "a", "response": "Paris", "overall_score": 8.5},
                _RATED | {"model": "b", "response": "Nowhere", "overall_score": 2.0},
            ],
            "correct_answers": ["None"],
        }
    ),
    "distilabel": rows_of(
        lambda n: {
            "instruction": f"City {n}?",
            "generations": ["Paris", "Nowhere"],
            "generation_models": ["a", "b"],
            "ratings": [5, 1],
            "rationales": ["good", "bad"],
        }
    ),
    "HelpSteer": [
        {"prompt": f"City {n // 2}?", "response": f"Paris {n}", "helpfulness": n % 2 * 3, "correctness": 4}
        for n in range(4)
    ],
    "HelpSteer2's preferences": rows_of(
        lambda n: {
            "split": "train",
            "prompt": f"City {n}?",
            "response_1": "Paris",
            "response_2": "Nowhere",
            "preference_strength": -2,
        }
    ),
    "HelpSteer3": rows_of(
        lambda n: {
            "domain": "general",
            "context": [{"role": "user", "content": f"City {n}?"}],
            "response1": "Nowhere",
            "response2": "Paris",
            "overall_preference": 2,
        }
    ),
    "Nectar": rows_of(
        lambda n: {
            "prompt": f"\n\nHuman: City {n}? \n\nAssistant: ",
            "answers": [
                {"answer": "Paris", "model": "a", "rank": 1.0},
                {"answer": "Nowhere", "model": "b", "rank": 2.0},
            ],
            "turns": 1,
        }
    ),
    "SHP": rows_of(
        lambda n: {
            "history": f"City {n}?",
            "score_A": 5,
            "score_B": 9,
            "human_ref_A": "Nowhere",
            "human_ref_B": "Paris",
            "labels": 0,
        }
    ),
    "Gemini's preference tuning": rows_of(
        lambda n: {
            "system_instruction": {"parts": [{"text": "Be short."}]},
            "contents": [_gemini("user", f"City {n}?")],
            "completions": [
                {"score": 0, "completion": _gemini("model", "Nowhere")},
                {"score": 1, "completion": _gemini("model", "Paris")},
            ],
        }
    ),
    "Gemini's tuning (Vertex AI)": rows_of(
        lambda n: {
            "systemInstruction": {"role": "system", "parts": [{"text": "Be short."}]},
            "contents": [_gemini("user", f"City {n}?"), _gemini("model", "Paris")],
        }
    ),
    "PKU-SafeRLHF": rows_of(
        lambda n: {"prompt": f"City {n}?", "response_0": "Paris", "response_1": "Nowhere", "better_response_id": 0}
    ),
    "Chatbot Arena": rows_of(
        lambda n: {
            "winner": "model_b",
            "conversation_a": _chat(f"City {n}?", "Nowhere"),
            "conversation_b": _chat(f"City {n}?", "Paris"),
        }
    ),
}
"""By the title of `known_sets.SETS`."""

HH_RLHF = rows_of(lambda n: {"chosen": _DIALOGUE.format(n, "Paris"), "rejected": _DIALOGUE.format(n, "Nowhere")})
OPEN_THOUGHTS = rows_of(
    lambda n: {
        "system": "Answer in two sections: <|begin_of_thought|> ... <|end_of_thought|> and the solution.",
        "conversations": [{"from": "user", "value": f"1+1 {n}"}, {"from": "assistant", "value": _THOUGHT}],
    }
)
_TOOL = {"type": "function", "function": _WEATHER | {"parameters": _SCHEMA}}
HERMES = rows_of(
    lambda n: {
        "id": str(n),
        "conversations": [
            {"from": "system", "value": f"You call functions. <tools> {json.dumps([_TOOL])} </tools>"},
            {"from": "human", "value": f"Weather {n}?"},
            {
                "from": "gpt",
                "value": 'I look.\n<tool_call>\n{"arguments": {"city": "Rome"}, "name": "weather"}\n</tool_call>\n',
            },
            {"from": "tool", "value": '<tool_response>\n{"t": 20}\n</tool_response>'},
            {"from": "gpt", "value": "It is 20."},
        ],
        "tools": json.dumps([_TOOL]),
        "category": "weather",
    }
)
TOOL_ACE = rows_of(
    lambda n: {
        "system": "You are an expert in composing functions. Here is a list of functions in JSON format:\n"
        + json.dumps([_WEATHER | {"parameters": _SCHEMA | {"type": "dict"}, "required": None}])
        + ". \nShould you decide to return the function call(s), put it in the format of [func1(params_name=value)]",
        "conversations": [
            {"from": "user", "value": f"Weather {n}?"},
            {"from": "assistant", "value": '[weather(city="Rome")]'},
            {"from": "tool", "value": '[{"name": "weather", "results": {"t": 20}}]'},
            {"from": "assistant", "value": "It is 20."},
        ],
    }
)
