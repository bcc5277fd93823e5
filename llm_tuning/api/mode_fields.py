"""Put the list of modes into the models: the choices of `mode`, a settings group each, rules, words in descriptions.

It closes the list: a mode that is registered later would be in some models and not in others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from pydantic import Field, create_model
from pydantic.alias_generators import to_camel

from llm_tuning.api.rules import Rule, RuledModel, cel_literal
from llm_tuning.core.model import ApiModel
from llm_tuning.modes import close
from llm_tuning.modes.mode import Mode, Score

MODE_LIST = close()

if TYPE_CHECKING:
    ModeName = str
else:
    ModeName = Literal[tuple(mode.name for mode in MODE_LIST)]

M = TypeVar("M", bound=RuledModel)
A = TypeVar("A", bound=ApiModel)


def with_mode_groups(model: type[M]) -> type[M]:
    """Add to `model` a field for the settings of each mode, and the rules that refuse settings of another mode."""
    groups: dict[str, Any] = {
        mode.name: (mode.settings, Field(default_factory=mode.settings, description=_group_help(mode)))
        for mode in MODE_LIST
        if mode.settings is not None
    }
    if taken := groups.keys() & model.model_fields:
        raise ValueError(f"{', '.join(sorted(taken))}: a mode cannot have the name of a field of {model.__name__}")
    made = create_model(model.__name__, __base__=model, __module__=model.__module__, __doc__=model.__doc__, **groups)
    made.RULES = (*model.RULES, *_rules())
    return made


def with_score_fields(model: type[A]) -> type[A]:
    """Add to `model` the scores of each mode, for every policy that is scored on the held-out rows."""
    fields: dict[str, Any] = {
        f"{policy}_{score.name}": (float | None, Field(None, description=_score_help(mode, score, whose)))
        for mode in MODE_LIST
        for score in mode.scores
        for policy, whose in (("base", "the base"), ("start", "the start adapter"), ("tuned", "the tuned model"))
    }
    return create_model(model.__name__, __base__=model, __module__=model.__module__, __doc__=model.__doc__, **fields)


def mode_help() -> str:
    """Return each mode and how it learns, as sentences."""
    return " ".join(f"{mode.name}: {mode.help}." for mode in MODE_LIST)


def learning_rates() -> str:
    """Return the default of each mode: `2e-4 for a and 5e-5 for b`."""
    *others, last = (f"{_short(mode.default_learning_rate)} for {mode.name}" for mode in MODE_LIST)
    return f"{', '.join(others)} and {last}"


def without_dropout() -> str:
    """Return which modes leave `lora.dropout` alone, as the end of a sentence."""
    return "".join(f"; {mode.name} trains without" for mode in MODE_LIST if not mode.uses_dropout)


def _group_help(mode: Mode[Any]) -> str:
    return f"{mode.settings_help}; only for mode {mode.name}."


def _rules() -> list[Rule]:
    """Refuse settings that the mode would ignore; defaults written out pass, so that a complete dump is read."""
    return [rule for mode in MODE_LIST if mode.settings is not None for rule in _rules_of(mode, mode.settings)]


def _rules_of(mode: Mode[Any], settings: type[ApiModel]) -> list[Rule]:
    return [
        _rule(mode, name, field.get_default(), number=_takes_fractions(field.annotation))
        for name, field in settings.model_fields.items()
    ]


def _takes_fractions(annotation: Any) -> bool:
    """Return whether `float` is the type or under Annotated and Optional; a JSON schema would slow --help down."""
    return annotation is float or any(map(_takes_fractions, get_args(annotation)))


def _rule(mode: Mode[Any], name: str, default: Any, *, number: bool) -> Rule:
    field = f"{mode.name}.{to_camel(name)}"
    is_default = f"!has(self.{field})" if default is None else f"self.{field} == {cel_literal(default, number=number)}"
    return Rule(
        f"self.mode == '{mode.name}' || {is_default}",
        lambda spec: spec.mode == mode.name or getattr(mode.settings_of(spec), name) == default,
        f"is set but mode is not {mode.name}; set mode: {mode.name} or remove it",
        field,
    )


def _score_help(mode: Mode[Any], score: Score, whose: str) -> str:
    return f"{mode.name}: {score.title} of {whose}{f', in {score.unit}' if score.unit else ''}."


def _short(rate: float) -> str:
    """Write a rate as papers do: 2e-4."""
    digits, _, exponent = f"{rate:e}".partition("e")
    return f"{float(digits):g}e{int(exponent)}"
