"""Write the model card, README.md of an adapter: what it is, how to use it, and how good it was on held-out rows.

It is written from the manifest alone, so that everything in it can be checked there, and holds no text of the data set.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llm_tuning.core.files import file_hash
from llm_tuning.data.report import Report, summary_lines
from llm_tuning.models.families import describe
from llm_tuning.models.held_out_scores import calls_note
from llm_tuning.models.layout import ADAPTER_WEIGHTS, CARD
from llm_tuning.models.manifest import FromSource, Manifest, hardware_line
from llm_tuning.modes import MODES, all_scores

FOUR_BITS = "trained and evaluated on a base in 4 bits (NF4), to be served on the base in 16"
POLICIES = (("base", "Base"), ("start", "Start adapter"), ("tuned", "Tuned"))


def write_model_card(folder: Path, manifest: Manifest, curve: str | None) -> None:
    """Write README.md into `folder`; `curve` is the file name of the loss-curve picture in it, if there is one."""
    sections = (
        _front_matter(manifest),
        _summary(manifest),
        _usage(manifest),
        _evaluation(manifest),
        _training(manifest, curve),
        _data(manifest),
        _hashes(manifest, _weight_hash(folder, manifest)),
    )
    (folder / CARD).write_text("\n\n".join(section for section in sections if section) + "\n", encoding="utf-8")


def _front_matter(manifest: Manifest) -> str:
    """Build the metadata of a Hugging Face model card. JSON is YAML, so values are quoted as JSON."""
    tags = ["lora", "peft", *([] if manifest.mode in manifest.tags else [manifest.mode]), *manifest.tags]
    dataset = manifest.dataset.source if manifest.dataset else None
    lines = [
        f"base_model: {json.dumps(_hub_name(manifest.base.source) or manifest.base.name)}",
        *([f"datasets: {json.dumps([name])}"] if (name := _hub_name(dataset)) else []),
        "library_name: peft",
        "pipeline_tag: text-generation",
        f"tags: {json.dumps(tags)}",
    ]
    return "\n".join(["---", *lines, "---"])


def _summary(manifest: Manifest) -> str:
    adapter = manifest.adapter
    rows = [
        ("Base", f"{_code(manifest.base.name)} ({_code(manifest.base.path)})"),
        *([("Base from", _source(manifest.base.source))] if manifest.base.source else []),
        ("Mode", MODES[manifest.mode].title if manifest.mode in MODES else manifest.mode),
        ("Started from", _code(manifest.start_adapter.model_id) if manifest.start_adapter else "the base itself"),
        *([("Changes", _plain(describe(adapter.modules, adapter.left_out)))] if adapter and adapter.modules else []),
        *([("Quantisation", FOUR_BITS)] if manifest.on_four_bits else []),
        ("Created", manifest.created_at),
        ("MLflow run", _mlflow(manifest)),
    ]
    text = f"# {_plain(manifest.model_name or manifest.model_id)}\n\nA LoRA adapter"
    text += f": {_plain(manifest.description)}." if manifest.description else "."
    return f"{text}\n\n{_table(('', ''), rows)}"


def _hub_name(source: FromSource | None) -> str:
    """Return `owner/name` of what comes from the hub, "" for all else."""
    if source is None or not source.uri.startswith("hf://"):
        return ""
    return source.uri.removeprefix("hf://").removeprefix("datasets/")


def _source(source: FromSource) -> str:
    part = f", {_code(source.selection)}" if source.selection else ""
    return f"{_code(source.uri)}{part} at commit {_code(source.commit)}"


def _mlflow(manifest: Manifest) -> str:
    if manifest.mlflow is None:
        return "none"
    return f"{_code(manifest.mlflow.run_id)} in {_code(manifest.mlflow.experiment)} at {_code(manifest.mlflow.uri)}"


def _usage(manifest: Manifest) -> str:
    return f"""## Use

With transformers and PEFT, from the folder above `{manifest.model_id}`; the chat template is the one of the training:

```python
{_load(manifest)}
tokenizer = AutoTokenizer.from_pretrained({json.dumps(manifest.model_id)})
inputs = tokenizer.apply_chat_template(
    [{{"role": "user", "content": "..."}}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=200)[0]))
```

With vLLM, as the model `{manifest.model_id}`, proven to take effect:

```bash
bash llm_tuning/config/llm/launch_llm.sh 8000 0 {shlex.quote(manifest.base.path)} models/{manifest.model_id}
```"""


def _load(manifest: Manifest) -> str:
    """Write the lines that load base and adapter, by the class in which every tensor has a place."""
    model_class = manifest.adapter.model_class if manifest.adapter else "AutoModelForCausalLM"
    folder = json.dumps(manifest.model_id)
    if model_class == "AutoModelForCausalLM":
        imports = "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer"
        return f"{imports}\n\nmodel = AutoPeftModelForCausalLM.from_pretrained({folder})"
    imports = f"from peft import PeftModel\nfrom transformers import {model_class}, AutoTokenizer"
    base = f"base = {model_class}.from_pretrained({json.dumps(manifest.base.path)})"
    return f"{imports}\n\n{base}\nmodel = PeftModel.from_pretrained(base, {folder})"


def _evaluation(manifest: Manifest) -> str:
    metrics = manifest.metrics
    policies = [(name, title) for name, title in POLICIES if isinstance(metrics.get(name), Mapping)]
    if not policies:
        reason = str(metrics.get("reason", "it was not evaluated"))
        why = f" ({metrics['message']})" if metrics.get("message") else ""
        return f"## Evaluation\n\nNo held-out evaluation: {_plain(reason + why)}."
    rows = []
    for score in all_scores():
        values = [metrics[name].get(score.name) for name, _ in policies]
        if any(value is not None for value in values):
            title = f"{score.title}, {score.unit}" if score.unit else score.title
            rows.append((title, *(_number(value) for value in values)))
    table = _table(("", *(title for _, title in policies)), rows)
    prompts = metrics.get("held_out_prompts")
    of = f" of {prompts:,} {'prompt' if prompts == 1 else 'prompts'} that no training row has" if prompts else ""
    held_out = f"{metrics.get('held_out_rows', 0):,} held-out rows{_evaluation_file(manifest)}{of}"
    note = calls_note(metrics)
    calls = f"\n\nTool calls: {_plain(note)}." if note else ""
    warnings = "".join(f"\n\nWarning: {_plain(str(warning))}." for warning in metrics.get("warnings") or ())
    return f"## Evaluation\n\nOn {held_out}, the same for every column.\n\n{table}{calls}{warnings}"


def _evaluation_file(manifest: Manifest) -> str:
    """Name the file of the held-out rows, and how many of it were not scored; empty for a share of the data set."""
    evaluation = manifest.dataset.evaluation if manifest.dataset is not None else None
    if evaluation is None:
        return ""
    left_out = manifest.metrics.get("left_out_rows") or 0
    less = f" (without {left_out:,} whose prompt a training row has)" if left_out else ""
    return f" from {_plain(Path(evaluation.path).name)}{less}"


def _training(manifest: Manifest, curve: str | None) -> str:
    parts = ["## Training"]
    done = manifest.training
    if done is not None:
        ended = f"; stopped early: {_plain(done.stopped_early)}" if done.stopped_early else ""
        devices = ", ".join(manifest.devices) or "unknown devices"
        parts.append(
            f"{done.steps:,} optimizer steps, {done.epochs:g} epochs, {done.tokens:,} tokens in "
            f"{_duration(done.seconds)} on {_plain(devices)}{ended}."
        )
    if manifest.hardware is not None:
        parts.append(f"Hardware: {_plain(hardware_line(manifest.hardware))}.")
    if curve is not None:
        parts.append(f"![Loss curve]({curve})")
    if rows := list(_configuration(manifest)):
        parts.append(_table(("Configuration", ""), rows))
    return "\n\n".join(parts)


def _configuration(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield what decides how it was trained; the learning rate in use where it was left to the mode."""
    mode = MODES.get(manifest.mode)
    for group in ("training", "lora", manifest.mode):
        values = dict(manifest.configuration.get(group) or {})
        if mode is not None and "learningRate" in values and values["learningRate"] is None:
            values["learningRate"] = mode.default_learning_rate
        yield from _flat(values, f"{group}.")


def _data(manifest: Manifest) -> str:
    data = manifest.dataset
    if data is None:
        return ""
    report = (data.model_extra or {}).get("report")
    if isinstance(report, Mapping):
        rows = [(label, _plain(text)) for label, text in summary_lines(Report.model_validate(report))]
    else:
        counts = f"{data.rows:,} read, {data.kept:,} kept, {data.refused:,} refused"
        rows = [("Dataset", _code(data.path)), ("Rows", counts)]
    if data.source is not None:
        rows.append(("Rows from", _source(data.source)))
    return f"## Data\n\n{_table(('', ''), rows)}"


def _weight_hash(folder: Path, manifest: Manifest) -> str:
    """Return the weight hash from the manifest or, before `publish` has filled it in, of the file; "" without one."""
    weights = folder / ADAPTER_WEIGHTS
    return manifest.weight_hash or (file_hash(weights) if weights.exists() else "")


def _hashes(manifest: Manifest, weight_hash: str) -> str:
    rows = [
        ("Adapter weights", weight_hash),
        ("Base weights", manifest.base.weight_hash),
        ("Start adapter weights", manifest.start_adapter.weight_hash if manifest.start_adapter else ""),
        ("Dataset", manifest.dataset.hash if manifest.dataset else ""),
        ("Chat template", manifest.template_hash),
        ("Configuration", manifest.config_hash),
    ]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(manifest.library_versions.items()))
    text = "## Provenance\n\n" + _table(("sha256", ""), [(name, _code(value)) for name, value in rows if value])
    return f"{text}\n\nMade with {_plain(versions)}. All of it is in `model.json`." if versions else text


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", _code(str(value))


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _code(text: str) -> str:
    """Format `text` as code; a backtick or a line break in it would end that."""
    return f"`{' '.join(text.replace('`', chr(39)).split())}`"


def _plain(text: str) -> str:
    """Format `text` as one line that Markdown does not read as markup of its own."""
    return " ".join(text.replace("<", "&lt;").split())
