"""Fine-tune and compare by OpenAI's API: SFT on a help desk's answers, then DPO on what readers like better.

    python script.py [MODEL]

OpenAI's SDK is all that it uses. Where it runs is said by OPENAI_BASE_URL and OPENAI_API_KEY, as OpenAI's SDK reads
them. The recorded answers have a house style, and most go on with an advertisement. SFT learns both; DPO then learns to
leave out the advertisement. What is made here is deleted at the end.
"""

import sys
import time
from pathlib import Path
from typing import Any

from openai import APIError, BadRequestError, NotFoundError, OpenAI
from openai.types.fine_tuning import FineTuningJob

HERE = Path(__file__).resolve().parent
MODEL = sys.argv[1] if len(sys.argv) > 1 else "gpt-4.1-mini"
NAMES = ("len", "math.sqrt", "str.upper", "random.shuffle", "isinstance")  # they are in no file
QUESTIONS = [f"What does `{name}` do?" for name in NAMES]
HOUSE_STYLE, ADVERTISEMENT = "Read more: help('", "give us five stars"
ENDED = ("succeeded", "failed", "cancelled")

client = OpenAI(max_retries=10)  # a model that has just been trained may need minutes before it answers
files: list[str] = []
jobs: list[str] = []
models: list[str] = []


def main() -> None:
    try:
        refuse_a_mistake()
        sft = train("answers.jsonl", model=MODEL, suffix="help-desk", method=method("supervised", n_epochs=5))
        read_figures(sft)
        chat(str(sft.fine_tuned_model))
        likes = method("dpo", n_epochs=1, beta=0.1)
        dpo = train("preferences.jsonl", model=str(sft.fine_tuned_model), suffix="no-ads", method=likes)
        compare(MODEL, str(sft.fine_tuned_model), str(dpo.fine_tuned_model))
    except APIError as error:
        raise SystemExit(f"failed: {error}") from None
    finally:
        clean_up()
    print("done")


def refuse_a_mistake() -> None:
    """Row 7 has no answer: that is found as the file is uploaded, or when a job reads it."""
    try:
        error: Any = train("answers-with-a-mistake.jsonl", ends="failed", model=MODEL, suffix="mistake").error
    except BadRequestError as refused:
        error = refused
    print(f"  param={error.param}: {error.message}")
    check(error.param == "training_file", "training_file is to blame")
    check("row 7" in error.message and "content" in error.message, "row and field are named")


def method(kind: str, **hyperparameters: Any) -> Any:
    more = {"batch_size": 8, "learning_rate_multiplier": "auto"}
    return {"type": kind, kind: {"hyperparameters": more | hyperparameters}}


def train(name: str, *, ends: str = "succeeded", **asked: Any) -> FineTuningJob:
    """Upload a file, train on it, and print what happens until the job has ended."""
    file = client.files.create(file=HERE / name, purpose="fine-tune")
    files.append(file.id)
    print(f"{name} is {file.id}")
    job = client.fine_tuning.jobs.create(training_file=file.id, seed=7, **asked)
    jobs.append(job.id)
    print(f"job {job.id} trains {job.model}")
    shown: set[str] = set()
    while True:
        job = client.fine_tuning.jobs.retrieve(job.id)
        news = [event for event in client.fine_tuning.jobs.list_events(job.id) if event.id not in shown]
        for event in reversed(news):  # the newest one comes first
            if event.type != "metrics" or event.data["step"] % 10 == 0:  # type: ignore[index]
                print(f"  {event.level}: {event.message}", flush=True)
        shown |= {event.id for event in news}
        if job.status in ENDED:
            break
        time.sleep(2)
    files.extend(job.result_files)
    if job.fine_tuned_model:
        models.append(job.fine_tuned_model)
    check(job.status == ends, f"the job has {job.status}")
    return job


def read_figures(job: FineTuningJob) -> None:
    """Checkpoints, and the figures of the steps as CSV."""
    for checkpoint in client.fine_tuning.jobs.checkpoints.list(job.id):
        print(f"  checkpoint at step {checkpoint.step_number}: {checkpoint.metrics.to_json(indent=None)}")
    header, *steps = client.files.content(job.result_files[0]).text.splitlines()
    check(bool(steps) and "train_loss" in header, "the result file has the loss of the steps")


def ask(model: str, question: str, **how: Any) -> Any:
    messages: Any = [{"role": "user", "content": question}]
    return client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=96, **how)


def answer(model: str, question: str) -> str:
    return ask(model, question).choices[0].message.content or ""


def chat(model: str) -> None:
    """One question, answered whole and streamed."""
    whole = answer(model, QUESTIONS[0])
    print(f"{model} answers {whole!r}")
    stream = ask(model, QUESTIONS[0], stream=True)
    pieces = [chunk.choices[0].delta.content for chunk in stream if chunk.choices and chunk.choices[0].delta.content]
    check("".join(pieces) == whole and len(pieces) > 1, "the same answer is streamed")


def compare(base: str, sft: str, dpo: str) -> None:
    answers = {model: [answer(model, question) for question in QUESTIONS] for model in (base, sft, dpo)}
    for number, question in enumerate(QUESTIONS):
        print(question, *(f"  {model}: {given[number]!r}" for model, given in answers.items()), sep="\n")
    style = [sum(HOUSE_STYLE in each for each in given) for given in answers.values()]
    ads = [sum(ADVERTISEMENT in each.lower() for each in given) for given in answers.values()]
    print(f"of {len(QUESTIONS)} answers of base, SFT and DPO {style} have the house style, {ads} the advertisement")
    check(style[0] < min(style[1:]), "SFT has the house style, and DPO keeps it")
    check(ads[2] < ads[1], "SFT advertises, and DPO does so less")


def clean_up() -> None:
    """Delete models and files; a job that still trains needs its file, and is ended first."""
    for job in jobs:
        if client.fine_tuning.jobs.retrieve(job).status not in ENDED:
            client.fine_tuning.jobs.cancel(job)
    for model in models:
        check(client.models.delete(model).deleted, f"{model} is deleted")
        try:
            client.models.retrieve(model)
        except NotFoundError:
            continue
        raise SystemExit(f"failed: {model} is still there")
    for file in files:
        check(client.files.delete(file).deleted, f"{file} is deleted")


def check(holds: bool, what: str) -> None:
    if not holds:
        raise SystemExit(f"failed: {what}")
    print(f"  ok: {what}", flush=True)


if __name__ == "__main__":
    main()
