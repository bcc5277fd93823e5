"""What a tuning run is: the groups of a TuningJob's spec, used by the CRD, the client and the command line alike.

Field descriptions are the manual: `--help`, `kubectl explain` and the reference pages show them.
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from llm_tuning.api.mode_fields import ModeName, learning_rates, mode_help, with_mode_groups, without_dropout
from llm_tuning.api.rules import Rule, RuledModel, cel_literal
from llm_tuning.core.files import expand_home
from llm_tuning.core.model import PATTERN_WORDS, ApiModel
from llm_tuning.data.rows import Learn
from llm_tuning.modes import DEFAULT_MODE, MODES

MODEL_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
BASE_NAME_CHARACTERS = 64
"""Of the base's name in a model_id, which has 128 at most."""
MOST_BATCH = 4096
ALL_LINEAR = "all-linear"
EVAL_FRACTION = 0.05

FIELD_PATTERN = r"^[a-z][a-z0-9_]*$"
MAX_COLUMNS = 16
"""More than the fields of any row shape."""
COLUMN_PATTERN = r"^[^\x00-\x1f\x7f]+$"
PATTERN_WORDS |= {
    FIELD_PATTERN: "a field of the rows, such as prompt",
    COLUMN_PATTERN: "the name of a column, without control characters",
}

PathText = Annotated[
    str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00]+$"), AfterValidator(expand_home)
]


def check_model_id(value: str) -> str:
    """Return `value` if it is a model_id; raises ValueError. Its own check, since `$` in Python allows a newline."""
    if re.fullmatch(MODEL_ID_PATTERN.strip("^$"), value) is None:
        raise ValueError(
            f"must be 1 to 128 of the characters A-Z a-z 0-9 . _ - and start with a letter or digit, "
            f"got {value[:40]!r}{'...' if len(value) > 40 else ''}"
        )
    return value


def form_model_id(mode: str, base_name: str, *, created: int, digest: str) -> str:
    """Form the model_id of a run without one; `created` is Unix time, `digest` six hex digits that no other run has."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", base_name)[:BASE_NAME_CHARACTERS] or "base"
    return f"ft_{mode}_{name}_{created}_{digest}"


ModelId = Annotated[
    str,
    StringConstraints(max_length=128),
    AfterValidator(check_model_id),
    Field(json_schema_extra={"pattern": MODEL_ID_PATTERN}),
]


class AdapterRef(ApiModel):
    """An existing adapter to start from."""

    model_id: ModelId = Field(
        description="model_id of a finished adapter of the same base; training continues from it, and a mode that holds to a start policy holds to it."
    )


class ModelSpec(RuledModel):
    """The base model."""

    path: PathText = Field(description="Folder of the base model: config.json, safetensors weights and tokenizer.")

    adapter: AdapterRef | None = Field(
        None, description="Adapter to start from; without it training starts at the base itself."
    )

    quantization: Literal["none", "4bit"] = Field(
        "none",
        description="`4bit` loads the base with bitsandbytes (QLoRA): about a third of its size in 16 bits. Slow on a CPU; this project has not run it on a GPU yet.",
    )


FieldOfRows = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=FIELD_PATTERN)]
ColumnName = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=COLUMN_PATTERN)]


def _names_no_column_twice(dataset: DatasetSpec) -> bool:
    names = list((dataset.columns or {}).values())
    return len(names) == len(set(names))


_ONE_FIELD_A_COLUMN = Rule(
    "!has(self.columns) || self.columns.all(a, self.columns.exists_one(b, self.columns[a] == self.columns[b]))",
    _names_no_column_twice,
    "must name each column for one field only",
    "columns",
)


class DatasetSpec(RuledModel):
    """The training rows."""

    RULES: ClassVar[tuple[Rule, ...]] = (_ONE_FIELD_A_COLUMN,)

    path: PathText = Field(
        description="File or folder of rows: JSON array, JSON Lines, CSV, TSV, Parquet or Arrow, also with gzip or zstd. `*` in a name takes all files that match; `#name` at the end takes a list in a JSON object, or a split of a folder."
    )

    evaluation: PathText | None = Field(
        None,
        description="File of rows to evaluate on, of the same mode and columns as `path`; all of its rows are held out, and no row of `path` is. `#validation` alone is that split of `path`. A row whose prompt is also among the training rows is left out of the scores, and counted. Without it a share of `path` is held out (evalFraction).",
    )

    columns: Annotated[dict[FieldOfRows, ColumnName], Field(min_length=1, max_length=MAX_COLUMNS)] | None = Field(
        None,
        description="Names of the columns where the file calls them otherwise, by the field that is meant: {prompt: question, output: answer}.",
    )

    skip_invalid_rows: bool = Field(
        False,
        description="Train on the rows that pass the check instead of refusing the file; the report still lists the others.",
    )


class TrainingSpec(ApiModel):
    """How the optimizer goes through the rows."""

    epochs: Annotated[int, Field(ge=1, le=1000)] = Field(1, description="Passes over the training rows.")

    max_steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = Field(
        None,
        description="Stop after this many optimizer steps, also in the middle of an epoch; without it `epochs` decides.",
    )

    learning_rate: Annotated[float, Field(ge=1e-10, le=0.1)] | None = Field(
        None, description=f"Peak learning rate; default {learning_rates()}."
    )

    lr_scheduler_type: Literal["linear", "cosine", "constant"] = Field(
        "cosine", description="Shape of the learning rate after warm-up."
    )

    warmup_ratio: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.03,
        description="Share of all steps over which the learning rate rises from zero, rounded to whole steps.",
    )

    weight_decay: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="AdamW weight decay.")

    max_grad_norm: Annotated[float, Field(ge=0.001, le=1000)] = Field(
        1.0, description="Gradients are scaled down to this norm."
    )

    batch_size: Annotated[int, Field(ge=1, le=MOST_BATCH)] = Field(
        8,
        description="Rows per device and accumulation step; a step takes batchSize x gradientAccumulationSteps x devices.",
    )

    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=4096)] = Field(
        1, description="Batches added up before an optimizer step; 8 x 1 and 1 x 8 give the same step."
    )

    max_length: Annotated[int, Field(ge=8, le=1_048_576)] = Field(
        1024, description="Tokens kept of a row; longer ones lose their end, and the check reports how much."
    )

    max_tokens_per_pass: Annotated[int, Field(ge=8, le=16_777_216)] | None = Field(
        None,
        description="Tokens in one forward pass per device, padding included: bounds memory, and changes nothing that is learned but which numbers dropout draws. Default: on a GPU 8192 for a base below 1 billion parameters and else 4096, on a CPU 1536.",
    )

    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: about a third slower, far less memory."
    )

    sharding: Literal["auto", "none", "full"] = Field(
        "auto",
        description="`full` divides the frozen base over the devices of a run: each keeps its part and has a layer whole only while it runs, and every pass waits for the others. `none` has the whole base on each. `auto` divides it on GPUs of whose memory less than a tenth would stay free with the whole base, by the estimate of `kubectl tuning plan`; never on CPUs or in 4 bits. With several nodes each has a copy where its GPUs have room for one. What is learned does not depend on it. Run on CPUs so far, not yet on several GPUs.",
    )

    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto",
        description="`auto` is bf16 where the GPU or CPU computes in it and fp32 elsewhere; a run keeps what it began with.",
    )

    learn: Learn = Field(
        "all",
        description="Which answers of a conversation are learned: `all` of them, each as it will be served, or the `last` one only, with the others as its context.",
    )

    learn_reasoning: bool = Field(
        True,
        description="Whether an answer's reasoning is learned (`reasoning_content` of a turn, or a think block in its text). When false it is shown before the answer and not learned; a base whose template does not end reasoning with `</think>` refuses such rows then.",
    )

    eval_fraction: Annotated[float, Field(ge=0, le=0.5)] = Field(
        EVAL_FRACTION,
        description="Share of rows held out for evaluation (at least one from 20 rows on, none below that); left at its default where `dataset.evaluation` gives them.",
    )

    eval_steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = Field(
        None,
        description="Steps between evaluations on the held-out rows during training; default ten times a run, at least one step.",
    )

    save_steps: Annotated[int, Field(ge=1, le=10_000_000)] = Field(
        50, description="Steps between checkpoints: what a kill costs at most."
    )

    seed: Annotated[int, Field(ge=0, le=2_147_483_647)] = Field(
        42, description="Seed of the held-out split, row order, LoRA weights and dropout."
    )

    def effective_batch_size(self, devices: int) -> int:
        """Return the rows in one optimizer step over all devices."""
        return self.batch_size * self.gradient_accumulation_steps * devices

    def resolved_learning_rate(self, mode: str) -> float:
        """Return the learning rate in use, where the default depends on the mode."""
        if self.learning_rate is not None:
            return self.learning_rate
        return MODES[mode].default_learning_rate


class LoraSpec(ApiModel):
    """The adapter, in PEFT's words. Only what vLLM serves: no DoRA, no bias, no modules_to_save."""

    rank: Annotated[int, Field(ge=1, le=512)] = Field(16, description="Rank of the update matrices.")

    alpha: Annotated[int, Field(ge=1, le=4096)] = Field(
        32, description="Scaling: the update is multiplied by alpha / rank."
    )

    dropout: Annotated[float, Field(ge=0, le=0.9)] = Field(
        0.05, description=f"Dropout on the adapter's input while training{without_dropout()}."
    )

    target_modules: Annotated[
        str, StringConstraints(min_length=1, max_length=2048, pattern=r"^[A-Za-z0-9_.-]+(,[A-Za-z0-9_.-]+)*$")
    ] = Field(
        ALL_LINEAR,
        description="`all-linear`, or module names with commas between: `q_proj,v_proj`. `all-linear` is every linear layer of the language model whose LoRA vLLM serves for this family: no router, fused experts, tower, embedding or output layer. Other names are refused.",
    )


class TrackingSpec(ApiModel):
    """Where MLflow keeps the run."""

    uri: Annotated[str, StringConstraints(min_length=1, max_length=2048), AfterValidator(expand_home)] | None = Field(
        None, description="MLflow tracking URI, or a folder (a sqlite store is made in it)."
    )

    experiment_name: Annotated[str, StringConstraints(min_length=1, max_length=250)] = Field(
        "llm_tuning", description="MLflow experiment."
    )


_ROWS_HELD_OUT_ONCE = Rule(
    f"!has(self.dataset.evaluation) || self.training.evalFraction == {cel_literal(EVAL_FRACTION, number=True)}",
    lambda config: config.dataset.evaluation is None or config.training.eval_fraction == EVAL_FRACTION,
    "is set beside dataset.evaluation, whose rows are all that is held out; remove one of them",
    "training.evalFraction",
)


_WHOLE_IN_4_BITS = Rule(
    "self.training.sharding != 'full' || self.model.quantization != '4bit'",
    lambda config: config.training.sharding != "full" or config.model.quantization != "4bit",
    "is full beside model.quantization 4bit: a base in 4 bits is not divided; set one of them to none",
    "training.sharding",
)


@with_mode_groups
class TuningConfig(RuledModel):
    """One tuning run, complete: what `--config` carries."""

    RULES: ClassVar[tuple[Rule, ...]] = (_ROWS_HELD_OUT_ONCE, _WHOLE_IN_4_BITS)

    mode: ModeName = Field(DEFAULT_MODE, description=mode_help())

    model: ModelSpec = Field(description="The base model.")

    dataset: DatasetSpec = Field(description="The training rows.")

    training: TrainingSpec = Field(default_factory=TrainingSpec, description="How the optimizer goes through the rows.")

    lora: LoraSpec = Field(default_factory=LoraSpec, description="The adapter.")

    tracking: TrackingSpec = Field(default_factory=TrackingSpec, description="Where MLflow keeps the run.")


def check_devices(text: str) -> str:
    """Return `text` if it names devices as `--devices` takes them; raises ValueError."""
    names = device_names(text)
    if "cpu" not in names and len(set(names)) != len(names):
        raise ValueError(f"names a GPU twice: {text!r}; name each GPU once")
    return text


def device_names(text: str) -> list[str]:
    """Parse `0,1` to [cuda:0, cuda:1] and `cpu,cpu` to [cpu, cpu]: one process each. Raises ValueError."""
    names = [part.strip() for part in text.split(",")]
    if all(name == "cpu" for name in names):
        return names
    if not all(re.fullmatch(r"[0-9]{1,3}", name) for name in names):
        raise ValueError(f"must be GPU numbers with commas between (0 or 0,1), cpu, or cpu,cpu, got {text!r}")
    return [f"cuda:{int(name)}" for name in names]


def check_sample(value: object) -> object:
    """Return `value` if it says whether to show a row, or which one; raises ValueError."""
    if not isinstance(value, int) or (not isinstance(value, bool) and value < 1):
        raise ValueError(f"must be a row's number, from 1, or nothing for the first usable row, got {value!r}")
    return value


class RunOptions(ApiModel):
    """What does not decide the weights: where the run happens and what it shows."""

    devices: Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(check_devices)] = Field(
        "0",
        description=(
            "GPU numbers with commas between (data-parallel), as nvidia-smi has them, or where CUDA_VISIBLE_DEVICES is "
            "set, counted from 0 among the GPUs that it leaves; or `cpu`; `cpu,cpu` trains data-parallel on two processes."
        ),
    )

    output_dir: PathText = Field("models", description="Folder of the adapters and registry.json.")

    sources_dir: PathText = Field(
        "sources", description="Folder of what is fetched by name: hf://, s3:// and https:// in place of a path."
    )

    model_id: ModelId | None = Field(
        None,
        description="Name of the result; starting the same model_id again resumes it. Made from mode, base and time by default.",
    )

    show_sample: Annotated[bool | int, BeforeValidator(check_sample)] = Field(
        False,
        description="Print one rendered row with the learned part marked, also when the output is not a terminal: the first usable one, or the one with the number that is given (`--show_sample 425`).",
    )
