"""Fields of other projects' rows that change what should be learned: one table of their names and what each means.

A field of the table is honoured, or it refuses the row by its name; only what cannot matter is left to a note. Names
are compared without upper case, `_` and `-`. docs/reference/rows.md and the table of the README are made from what
stands here, so a new kind is an entry of KINDS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from llm_tuning.data.faults import Reason, RowFault, shown
from llm_tuning.data.values import flag, is_given, is_set

Names = tuple[str, ...]


def plain(name: str) -> str:
    """Return a field's name as the table compares it: `toolCalls`, `tool-calls` and `tool_calls` are one."""
    return _plain_of_short(name) if len(name) < _SHORT else _plain(name)


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


_SHORT = 64
"""Characters: rows repeat the names of their fields, and what is kept of them has a bound."""
_plain_of_short = lru_cache(maxsize=1024)(_plain)


def words(text: str) -> Names:
    """Return the words of a text."""
    return tuple(text.split())


@dataclass(frozen=True)
class FieldKind:
    """Fields that mean one thing, and that no row is learned without."""

    name: str
    """What a mode that honours them has in `RowForm.takes`."""
    title: str
    """What they are, for the documentation."""
    rule: str
    """What follows the field's name in a refusal."""
    fix: str
    row: Names = ()
    """Names beside the fields of a shape."""
    remarks: Names = ()
    """Those of `row` that a mode which takes the kind can leave to a note."""
    turn: Names = ()
    """Names in a message, or in a part of its content."""
    parts: Names = ()
    """Types of the parts of a message's content."""
    roles: Names = ()
    matters: Callable[[Any], bool] = is_given
    """Which values change something."""
    read: Names = ()
    """Of `row`, those that a mode which honours the kind reads beside every shape; the others it refuses."""
    unread: tuple[str, str] | None = None
    """Rule and fix for a name that nothing reads, where others of the kind are read; None where none are."""
    column: str = ""
    """The field of a row that a column of another name may stand for."""

    def fault(self, name: str, *, at: str = "", advice: str = "") -> RowFault:
        """Build the refusal of a row for its field `name`; `advice` goes before the fix that holds in every mode."""
        fix = "; ".join(filter(None, (advice, self.fix)))
        return RowFault(Reason.UNSUPPORTED_FIELD, f"`{shown(name)}` {self.rule}", fix, at=at)

    def unread_fault(
        self, name: str, *, at: str = "", columns: Mapping[str, str] | None = None, one_answer: bool = True
    ) -> RowFault:
        """Build the refusal of a row for its field `name`, which no mode reads.

        `columns` make a row of its other fields; `one_answer`: the row has one, which the field can belong to.
        """
        if self.unread is None:
            return self.fault(name, at=at)
        rule, fix = self.unread
        if self.column and not at and one_answer:
            names = ",".join(f"{own}={given}" for own, given in ({**(columns or {}), self.column: name}).items())
            fix = f"{{set:dataset.columns={names}}} where it belongs to the row's one answer, or {fix}"
        return RowFault(Reason.UNSUPPORTED_FIELD, f"`{shown(name)}` {rule}", fix, at=at)


def is_label(value: Any) -> bool:
    """Return whether a label says good or bad, a class or a score; words that name a topic do not."""
    match value:
        case None:
            return False
        case str():
            return flag(value) is not None or value.strip().removeprefix("-").replace(".", "", 1).isdigit()
        case list() | tuple():
            return any(isinstance(item, list | dict) or is_label(item) for item in value)
        case dict():
            return is_label(list(value.values()))
    return True


def is_false(value: Any) -> bool:
    """Return whether `value` is false or 0."""
    return flag(value) is False


def is_true(value: Any) -> bool:
    """Return whether `value` is true or 1."""
    return flag(value) is True


def is_cut(value: Any) -> bool:
    """Return whether a server says by `value` that it ended an answer before the model did."""
    return value is True or (isinstance(value, str) and plain(value.strip()) in _CUT)


def is_for_evaluation(value: Any) -> bool:
    """Return whether a row's split is one that nobody trains on."""
    return isinstance(value, str) and plain(value.strip()) in _EVALUATION


def is_train_on_input(value: Any) -> bool:
    """Return whether the flag is anything but false."""
    return is_given(value) and flag(value) is not False


def is_list(value: Any) -> bool:
    """Return whether `value` is a list with something in it."""
    return isinstance(value, list | tuple) and is_given(value)


def is_not_final(value: Any) -> bool:
    """Return whether `value` is given, and not gpt-oss's channel of answers."""
    return is_given(value) and value != "final"


def is_prose(value: Any) -> bool:
    """Return whether `value` is a text of several words, or a list with one: no flag, count or name."""
    if isinstance(value, list | tuple):
        return any(is_prose(item) for item in value)
    return isinstance(value, str) and len(value.split()) > 1


_CUT = words("length maxtokens maxlength modellength contentfilter aborted abort incomplete")
_EVALUATION = words("test validation valid val dev eval evaluation holdout heldout")

KINDS = (
    FieldKind(
        "tools",
        "tools and calls of them",
        "belongs to calls of tools, which the mode does not learn",
        "leave such rows out: without its tools a row would teach calls out of nowhere",
        row=words(
            "tools functions parallel_tool_calls tool_choice tool_calls function_call function_calls tool_definitions "
            "tool_schemas"
        ),
        turn=words(
            "tool_calls tool_call function_call function_calls functions tools tool_call_id tool_use tool_responses"
        ),
        parts=words("tool_use tool_result tool_call tool_response function_call function"),
        roles=words(
            "tool observation function function_call function_response tool_call tool_response ipython environment"
        ),
        read=words("tools functions parallel_tool_calls tool_choice"),
        unread=(
            "belongs to calls of tools, and is no name that they are read by",
            "declare the tools as `tools`, write calls into the assistant's turns as `tool_calls`, and what a tool "
            "gave as a turn of role tool",
        ),
    ),
    FieldKind(
        "reasoning",
        "reasoning apart from the answer",
        "is reasoning apart from the answer, which the mode does not learn",
        "leave such rows out; without the field the answer is learned without its reasoning",
        row=words(
            "reasoning reasoning_content reasoning_trace reasoning_steps thinking think thought thoughts rationale "
            "rationales explanation chain_of_thought cot complex_cot cot_content scratchpad analysis "
            "thinking_trajectory thinking_trajectories reasoning_chain reasoning_process thought_process"
        ),
        turn=words(
            "reasoning_content reasoning reasoning_details thinking thinking_blocks thought thoughts think cot channel"
        ),
        parts=words("reasoning reasoning_text thinking redacted_thinking"),
        roles=words("reasoning thinking think analysis"),
        matters=is_not_final,
        read=words("reasoning_content reasoning thinking"),
        unread=(
            "is reasoning apart from the answer, and no name that it is read by",
            "write it as `reasoning_content` of the answer's turn; without the field the answer is learned alone",
        ),
        column="reasoning_content",
    ),
    FieldKind(
        "media",
        "images, audio, video",
        "belongs to images, audio or video, which are not seen in training",
        "leave such rows out: a model of text would learn to tell of what it has not seen",
        row=words(
            "image images image_path image_paths image_file image_files image_url image_urls img imgs img_path picture "
            "pictures pixel_values audio audios audio_path audio_paths audio_url speech video videos video_path "
            "video_paths video_url multi_modal_data objects bbox bboxes attachments"
        ),
        turn=words(
            "image images image_url audio audios audio_url input_audio video videos video_url objects bbox attachments"
        ),
        parts=words(
            "image image_url input_image audio audio_url input_audio video video_url input_video file input_file "
            "document"
        ),
    ),
    FieldKind(
        "preference",
        "two answers, of which one is better",
        "belongs to preference data",
        "",
        row=words(
            "chosen rejected chosen_response rejected_response rejected_responses chosen_messages rejected_messages "
            "rejected_tools rejected_images preferred preferred_output non_preferred non_preferred_output "
            "dispreferred dispreferred_output preference positive_messages negative_messages score_chosen "
            "score_rejected chosen_score rejected_score chosen_rating rejected_rating chosen_reward rejected_reward "
            "margin winner loser better_response worse_response better_response_id safer_response_id response_0 "
            "response_1 response_a response_b response_j response_k answer_a answer_b output_1 output_2 "
            "completion_a completion_b conversation_a conversation_b chosen_output chosen_answer chosen_completion "
            "rejected_output rejected_outputs rejected_answer rejected_completion bad_output bad_response bad_answer "
            "negative_output negative_response negative_answer worst_response"
        ),
        remarks=words(
            "score_chosen score_rejected chosen_score rejected_score chosen_rating rejected_rating chosen_reward "
            "rejected_reward margin"
        ),
        turn=words("chosen rejected preferred preference"),
    ),
    FieldKind(
        "token ids",
        "rows that are tokenised already",
        "holds tokens that another program made",
        "give the rows as text: the base's own tokenizer makes the tokens",
        row=words("input_ids token_ids tokens prompt_ids prompt_token_ids completion_ids attention_mask position_ids"),
        matters=is_list,
    ),
    FieldKind(
        "label",
        "whether an answer is good, or its class",
        "marks the answer as good or bad, or with a class or score: that is not learned",
        "",
        row=words("label labels kto_tag"),
        turn=words("label kto_tag"),
        matters=is_label,
    ),
    FieldKind(
        "judgement",
        "an answer that is marked as bad",
        "says that the answer is bad",
        "leave such rows out",
        row=words(
            "is_correct correct is_chosen is_preferred is_good desirable is_desirable accepted approved thumbs_up "
            "is_valid valid review_result passed"
        ),
        turn=words(
            "is_correct correct is_chosen is_preferred is_good desirable is_desirable accepted approved thumbs_up "
            "is_valid valid review_result passed"
        ),
        matters=is_false,
    ),
    FieldKind(
        "left out",
        "what is wrong, or not to be used",
        "says that it is wrong, or not to be used",
        "leave such rows out; a turn that is seen and not learned is marked by `train`: false",
        row=words(
            "deleted is_deleted discard discarded exclude excluded ignore ignored skip skipped incorrect is_incorrect "
            "wrong is_wrong is_bad is_rejected"
        ),
        turn=words(
            "deleted is_deleted discard discarded exclude excluded ignore ignored skip skipped incorrect is_incorrect "
            "wrong is_wrong is_bad is_rejected"
        ),
        matters=is_true,
    ),
    FieldKind(
        "refusal",
        "an answer that refuses, as OpenAI's API gives it",
        "is an answer that refuses, apart from the text of the answer",
        "write it as that text (`content` of a turn) where the model is to refuse so, else leave the row out",
        row=words("refusal"),
        turn=words("refusal"),
        parts=words("refusal"),
        matters=is_prose,
    ),
    FieldKind(
        "cut",
        "an answer that was cut off",
        "says that the answer was cut off, and it would be learned as a whole one that ends there",
        "leave such rows out, or remove the field where the answer is whole",
        row=words("finish_reason stop_reason done_reason truncated is_truncated was_truncated is_cut_off"),
        turn=words("finish_reason stop_reason done_reason truncated is_truncated was_truncated is_cut_off"),
        matters=is_cut,
    ),
    FieldKind(
        "masks",
        "which tokens count, and how much",
        "says what is learned in a way that is not supported",
        "mark a whole turn that is seen and not learned by `train`: false",
        row=words(
            "loss_mask loss_masks loss_scale loss_scales loss_weights mask masks completion_mask assistant_mask "
            "assistant_masks train_mask weights token_weights sample_weight sample_weights roles_to_train "
            "train_on_eos segments learn compute_loss calculate_loss"
        ),
        turn=words(
            "loss_mask loss_scale loss_weights mask masked masks weights train_detail training_detail train_mask "
            "trainable learn learnable compute_loss calculate_loss is_train do_train train_on_turn supervised is_masked"
        ),
        matters=is_set,
    ),
    FieldKind(
        "train on input",
        "prompts that are learned, too",
        "asks for prompts to be learned, and only answers are",
        "remove the field to learn the answers alone",
        row=words("train_on_input train_on_inputs train_on_prompt train_on_source train_on_user"),
        turn=words("train_on_input train_on_inputs train_on_prompt"),
        matters=is_train_on_input,
    ),
    FieldKind(
        "template",
        "arguments of the chat template",
        "changes how the chat template writes the row, which is not supported",
        "remove it where the template's own defaults are meant; tools belong into `tools`, and instructions into the "
        "system message",
        row=words(
            "chat_template_kwargs template_kwargs chat_template documents enable_thinking thinking_mode "
            "reasoning_effort builtin_tools model_identity"
        ),
        turn=words("chat_template_kwargs enable_thinking reasoning_effort"),
        matters=is_set,
    ),
    FieldKind(
        "split",
        "rows for evaluation",
        "says that the row is for evaluation, not for training",
        "put such rows into a file of their own, {field:dataset.evaluation}, or remove the field",
        row=words("split data_split dataset_split partition fold subset set"),
        matters=is_for_evaluation,
    ),
)
"""In the order in which the fields of a row are compared with them."""

FLAGS = words("train training loss weight loss_weight")
"""Of a turn or a row: false or 0 is seen and not learned."""
PREFIX = words("prefix partial")
"""Of an assistant turn: true makes it the beginning of the next one, which is given with the prompt."""
SYSTEM = words(
    "system system_prompt system_message system_instruction system_text system_content sys_prompt meta_instruction "
    "developer_message developer_prompt"
)
"""Of a row: the first message, of role system."""
HISTORY = words(
    "history chat_history conversation_history dialogue_history dialog_history message_history previous_messages "
    "previous_turns"
)
"""Of a row: pairs of a question and an answer, before the prompt."""

QUESTIONS = words("prompt question query instruction instructions problem")
ANSWERS = words(
    "output completion answer response target targets solution reply final_answer correct_answer reference_answer "
    "expected_output ground_truth"
)
CONTEXTS = words(
    "input inputs context contexts passage passages paragraph background knowledge document article choices options "
    "definition premise hypothesis schema prefix suffix"
)
BESIDE = words(
    "prefill assistant_prefix response_prefix answer_prefix few_shot few_shots few_shot_examples demonstrations "
    "evidence docs facts table tables retrieved_context retrieved_documents sql_context code_context corrected "
    "corrected_output corrected_response corrected_answer revised_output revised_response revised_answer "
    "improved_output edited_output"
)
"""Texts that belong to the question or correct the answer, and that no shape has a place for."""
BESIDE_CONTENT = words(
    "text message body corrected corrected_content corrected_text corrected_value revised revised_content revised_text "
    "edited edited_content edited_text improved improved_content rewritten_content"
)
"""Of a message: what could be its content, or corrects it."""
OWN_TEXTS = words("text messages conversations conversation dialog dialogue")
SUMMARIES = words("summary highlights")
ANSWERS_TO_TEXT = words(
    "code canonical_solution sql translation translations translated paraphrase paraphrases rewrite rewritten "
    "correction output_text target_text text_target"
)
"""Beside plain text: what is made of it, as in a task of code or translation."""
LABELS_OF_TEXT = words(
    "label labels label_text label_name label_id class class_name class_label category sentiment intent target "
    "gold_label coarse_label fine_label emotion emotions polarity stars spam is_spam toxic hate ner ner_tags pos_tags "
    "entities spans annotations"
)
"""Beside plain text: what a classifier would learn to say of it."""


def _by_name(names: Callable[[FieldKind], Iterable[str]]) -> Mapping[str, FieldKind]:
    return {plain(name): kind for kind in KINDS for name in names(kind)}


ROW_KINDS = _by_name(lambda kind: kind.row)
_REASONING_ENDS = ("reasoning", "reasoningtrace", "thinkingtrajectory", "thinkingtrajectories", "chainofthought")
"""Ends of names such as `deepseek_reasoning`."""
_REASONING_OF = replace(ROW_KINDS["reasoning"], matters=is_prose)


def kind_of(key: str) -> FieldKind | None:
    """Return what a field of a row means beside its shape, by its name as `plain` writes it; None for most."""
    kind = ROW_KINDS.get(key)
    return _REASONING_OF if kind is None and key.endswith(_REASONING_ENDS) else kind


READ_ROW_NAMES: Mapping[str, str] = {plain(name): kind.name for kind in KINDS for name in kind.read}
"""The kind of each field that is read beside every shape, by name."""
TURN_KINDS = _by_name(lambda kind: kind.turn)
SCORES_OF_SIDES = (
    ("scorechosen", "scorerejected"),
    ("chosenscore", "rejectedscore"),
    ("chosenrating", "rejectedrating"),
    ("chosenreward", "rejectedreward"),
    ("ratingchosen", "ratingrejected"),
    ("rewardchosen", "rewardrejected"),
    ("margin", ""),
)
"""Beside two answers: how good each is, by names as `plain` writes them; or by how much the better one is better."""
REMARKS = frozenset(plain(name) for kind in KINDS for name in kind.remarks)
PART_KINDS = _by_name(lambda kind: kind.parts)
ROLE_KINDS = _by_name(lambda kind: kind.roles)
FLAG_NAMES = frozenset(map(plain, FLAGS))
PREFIX_NAMES = frozenset(map(plain, PREFIX))
SYSTEM_NAMES = frozenset(map(plain, SYSTEM))
HISTORY_NAMES = frozenset(map(plain, HISTORY))
BESIDE_CONTENT_NAMES = frozenset(map(plain, BESIDE_CONTENT))
TEXT_NAMES = frozenset(map(plain, (*QUESTIONS, *ANSWERS, *CONTEXTS, *BESIDE, *OWN_TEXTS)))
"""Texts that could be asked or answered: beside a shape that does not read them they are a copy of it, or a fault."""
ASKED_NAMES = frozenset(map(plain, QUESTIONS))
ANSWER_NAMES = frozenset(map(plain, (*ANSWERS, *SUMMARIES)))
ANSWER_TO_TEXT_NAMES = ANSWER_NAMES | frozenset(map(plain, ANSWERS_TO_TEXT))
LABEL_OF_TEXT_NAMES = frozenset(map(plain, LABELS_OF_TEXT))
