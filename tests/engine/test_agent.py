"""The agent beside a real vLLM: each false serving caught, clients who are never answered by another adapter.

The tests share one pod and come one after the other. What an adapter has to say is known from transformers and PEFT,
and a stream of clients holds each answer to it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from llm_tuning.api.inference_service import VllmSpec
from tests.support.lora_adapters import make_adapter
from tests.support.serving import ANSWER_TOKENS, BASE, PROMPT, ServedFiles, make_files
from tests.support.serving_pod import ServingPod, serving_pod
from tests.support.tiny_base import CHAT_TEMPLATE, make_base

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]

GOOD = {"ft_a": {"b_scale": 0.05, "seed": 1}, "ft_b": {"b_scale": 0.05, "seed": 2}}
ROUTES: dict[str, str | dict[str, int]] = {"a": "ft_a", "b": "ft_b"}
REFUSED_PAUSE = 0.1
SHORT_TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
WEIGHTS = "adapter_model.safetensors"


# --- what clients do --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What a client got."""

    status: int
    model_id: str
    """By the header."""
    text: str
    whole: bool
    """It ended as it should: with [DONE], or as one JSON object."""
    error: str = ""


async def ask(pod: ServingPod, route: str, *, stream: bool = False, **further: Any) -> Answer:
    body = {"model": route, "messages": PROMPT, "max_tokens": ANSWER_TOKENS, "temperature": 0, "stream": stream}
    async with pod.session.post(f"{pod.url}/v1/chat/completions", json=body | further) as response:
        served = response.headers.get("X-Model-Id", "")
        if response.status != 200:
            return Answer(response.status, served, "", True, (await response.json())["error"]["message"])
        if not stream:
            value = await response.json()
            assert value["model"] == route, "as the client called it"
            return Answer(200, served, value["choices"][0]["message"]["content"] or "", True)
        assert response.content_type == "text/event-stream"
        return _read_events(route, served, (await response.read()).decode())


def _read_events(route: str, served: str, content: str) -> Answer:
    """As OpenAI's client reads server-sent events."""
    text, error, whole = "", "", False
    for event in filter(None, content.split("\n\n")):
        assert event.startswith("data: "), event
        if event == "data: [DONE]":
            whole = True
            continue
        value = json.loads(event[6:])
        if "error" in value:
            error = value["error"]["message"]
        else:
            assert value["model"] == route
            text += "".join(choice["delta"].get("content") or "" for choice in value["choices"])
    return Answer(200, served, text, whole, error)


@dataclass
class Clients:
    """A steady stream of requests; every answer is held to what the adapter that gave it is known to say."""

    pod: ServingPod
    answers: dict[str, str]
    """By model_id, and of the base."""
    routes: dict[str, set[str]]
    """Who may answer."""
    good: Counter[str] = field(default_factory=Counter)
    """200s by model_id, with the right content."""
    refused: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    """Streams that broke off and connections that were closed."""
    wrong: list[tuple[str, Answer]] = field(default_factory=list)
    last_good: dict[str, float] = field(default_factory=dict)

    async def run(self, route: str, *, stream: bool, pause: float) -> None:
        while True:
            try:
                answer = await ask(self.pod, route, stream=stream)
            except aiohttp.ClientError:
                self.cut[route] += 1
            else:
                self._note(route, answer)
                await asyncio.sleep(pause if answer.status == 200 else REFUSED_PAUSE)

    def _note(self, route: str, answer: Answer) -> None:
        if answer.status == 500 and "EngineCore" in answer.error:  # the engine's own word for its end
            self.cut[route] += 1
            return
        if answer.status != 200:
            self.refused[route] += 1
            if answer.status != 503 or not answer.error:
                self.wrong.append((route, answer))
            return
        right = self.answers.get(answer.model_id)
        allowed = answer.model_id in self.routes[route] and right is not None
        if answer.error and allowed and (right or "").startswith(answer.text):
            self.cut[route] += 1
        elif answer.whole and allowed and answer.text == right:
            self.good[answer.model_id] += 1
            self.last_good[route] = time.monotonic()
        else:
            self.wrong.append((route, answer))

    def counts(self) -> str:
        return f"{dict(self.good)} right, {dict(self.refused)} refused, {dict(self.cut)} cut, {len(self.wrong)} wrong"


@asynccontextmanager
async def clients(
    pod: ServingPod, files: ServedFiles, routes: dict[str, set[str]], *, pause: float = 0.05
) -> AsyncIterator[Clients]:
    """Two clients of each route, one of them streaming."""
    made = Clients(pod, files.answers, routes)
    tasks = [asyncio.create_task(made.run(route, stream=s, pause=pause)) for route in routes for s in (False, True)]
    try:
        yield made
        for task in tasks:
            assert not task.done(), task.exception()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# --- false servings ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class False_:  # noqa: N801 - a false serving
    """How an adapter's folder is made wrong, and what must be said of it."""

    make: Callable[[Path], object]
    """Of the adapter's folder."""
    reason: str
    words: str
    effective: str = "False"


def derive(source: Path, folder: Path, *, hashes: bool = False) -> Path:
    """A copy of an adapter that says that it is another one, with the hashes of its files where `hashes`."""
    shutil.copytree(source, folder)
    for name in ("model.json", "parity.json"):
        edit(folder / name, model_id=folder.name)
    if hashes:
        digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
        edit(folder / "model.json", files={name: digest for name, digest in digests.items() if name != "model.json"})
    return folder


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder: Path, change: Callable[[str, Any], Any]) -> None:
    """Every tensor becomes what `change` makes of it; None leaves it out."""
    from safetensors.torch import load_file, save_file

    made = {name: change(name, tensor) for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file({name: tensor for name, tensor in made.items() if tensor is not None}, folder / WEIGHTS)


def false_servings(files: ServedFiles, scratch: Path) -> dict[str, False_]:
    models, base = files.folder / "models", files.base

    def copy(folder: Path, **options: Any) -> Path:
        return derive(models / "ft_a", folder, **options)

    def zeroed(folder: Path) -> None:
        change_weights(copy(folder), lambda name, tensor: tensor * 0 if "lora_B" in name else tensor)

    def tenth(folder: Path) -> None:
        change_weights(copy(folder), lambda name, tensor: tensor * 0.1 if "lora_B" in name else tensor)

    def layer_missing(folder: Path) -> None:
        change_weights(copy(folder), lambda name, tensor: None if ".layers.1." in name else tensor)

    def one_nan(folder: Path) -> None:
        def spoil(name: str, tensor: Any) -> Any:
            tensor.view(-1)[-1] = float("nan") if "layers.1.mlp.down_proj.lora_B" in name else 0.1
            return tensor

        change_weights(copy(folder), spoil)

    def infinite_in_bf16(folder: Path) -> None:
        import torch

        change_weights(copy(folder), lambda name, tensor: (tensor / 0).to(torch.bfloat16))

    def unknown_names(folder: Path) -> None:
        copy(folder)
        change_names(folder, "lora_B.weight", "lora_B.further.weight")

    def rank_in_weights_only(folder: Path) -> None:
        make_adapter(folder, base, b_scale=0.05, rank=64)
        edit(folder / "adapter_config.json", r=16)

    def other_base(folder: Path, *, hidden: str = "") -> None:
        another = scratch / f"other-{folder.name}"
        make_adapter(folder, make_base(another, seed=7), b_scale=0.05)
        if hidden:
            edit(folder / "model.json", base={})
            edit(folder / "parity.json", base_weight_hash="")

    def hash_in_probes_only(folder: Path) -> None:
        other_base(folder)
        edit(folder / "model.json", base={})

    def other_weights(folder: Path, *, hashes: bool = False) -> None:
        copy(folder, hashes=hashes)
        shutil.copy(models / "ft_b" / WEIGHTS, folder / WEIGHTS)

    def other_weights_and_probes(folder: Path) -> None:
        other_weights(folder)
        shutil.copy(models / "ft_b/parity.json", folder / "parity.json")

    def alpha(folder: Path) -> None:
        copy(folder, hashes=True)
        edit(folder / "adapter_config.json", lora_alpha=64)

    def rslora(folder: Path) -> None:
        edit(copy(folder) / "adapter_config.json", use_rslora=True)

    def own_template(folder: Path) -> None:
        make_adapter(folder, base, b_scale=0.05, chat_template=SHORT_TEMPLATE)

    def old_template(folder: Path) -> None:
        """The base's template was changed after the training, and the adapter does not tell."""
        make_adapter(folder, base, b_scale=0.05, chat_template=SHORT_TEMPLATE)
        (folder / "chat_template.jinja").unlink()

    def claimed_template(folder: Path) -> None:
        old_template(folder)
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)

    def pickled(folder: Path) -> None:
        import torch

        torch.save({}, copy(folder) / "adapter_model.bin")

    def only_pickled(folder: Path) -> None:
        pickled(folder)
        (folder / WEIGHTS).unlink()

    def truncated(folder: Path, *, hashes: bool = False, header: bool = False) -> None:
        path = copy(folder, hashes=hashes) / WEIGHTS
        content = path.read_bytes()
        path.write_bytes(content[: 100 if header else len(content) - 1000])

    def config(**changes: Any) -> Callable[[Path], None]:
        return lambda folder: edit(copy(folder) / "adapter_config.json", **changes)

    def not_whole(folder: Path) -> None:
        (copy(folder) / "model.json").unlink()

    def embedding(folder: Path) -> None:
        copy(folder)
        change_names(folder, "q_proj", "embed_tokens")

    def change_names(folder: Path, old: str, new: str) -> None:
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / WEIGHTS)
        save_file({name.replace(old, new): tensor for name, tensor in weights.items()}, folder / WEIGHTS)

    return {
        "zeroed B": False_(zeroed, "NoEffect", "changes nothing"),
        "a tenth of B": False_(tenth, "NoEffect", "changes nothing"),
        "a layer left out": False_(layer_missing, "Different", "something else than was trained"),
        "one NaN": False_(one_nan, "AdapterInvalid", "no numbers (NaN or infinite)"),
        "infinite in bfloat16": False_(infinite_in_bf16, "AdapterInvalid", "no numbers (NaN or infinite)"),
        "trained on another base": False_(other_base, "BaseMismatch", "this engine serves served (weights "),
        "another base, by its probes": False_(hash_in_probes_only, "BaseMismatch", "trained on another base"),
        "another base, nothing tells": False_(
            lambda folder: other_base(folder, hidden="x"), "Different", "the base itself answers differently"
        ),
        "another's weights": False_(other_weights, "Different", "something else than was trained"),
        "another's weights, hashed": False_(
            lambda folder: other_weights(folder, hashes=True), "AdapterInvalid", "is not the file that model.json"
        ),
        "another's weights and probes": False_(other_weights_and_probes, "AdapterInvalid", "ft_b"),
        "another's whole folder": False_(
            lambda folder: shutil.copytree(models / "ft_b", folder), "AdapterInvalid", "holds the adapter ft_b"
        ),
        "alpha doubled": False_(alpha, "Different", "lora_alpha"),
        "rslora switched on": False_(rslora, "Different", "something else than was trained"),
        "own chat template": False_(own_template, "TemplateMismatch", "its own chat_template.jinja"),
        "base's template changed": False_(old_template, "Different", "chat template differs"),
        "claims the base's template": False_(claimed_template, "Different", "chat template differs"),
        "rank 64": False_(
            lambda folder: make_adapter(folder, base, b_scale=0.05, rank=64), "RankTooHigh", "has rank 64, this engine"
        ),
        "pickled weights beside": False_(pickled, "AdapterInvalid", "pickled"),
        "pickled weights only": False_(only_pickled, "AdapterInvalid", "pickled"),
        "cut off": False_(truncated, "AdapterInvalid", "is cut off"),
        "unknown names": False_(unknown_names, "LoadFailed", "the engine does not load it", "Unknown"),
        "rank 64, called 16": False_(rank_in_weights_only, "LoadFailed", "the engine does not load it", "Unknown"),
        "cut off, hashed": False_(lambda folder: truncated(folder, hashes=True), "AdapterInvalid", "is cut off"),
        "cut off in the header": False_(lambda folder: truncated(folder, header=True), "AdapterInvalid", "cannot be"),
        "DoRA": False_(config(use_dora=True), "AdapterInvalid", "use_dora"),
        "modules_to_save": False_(config(modules_to_save=["lm_head"]), "AdapterInvalid", "modules_to_save"),
        "not LoRA": False_(config(peft_type="IA3"), "AdapterInvalid", "vLLM serves LoRA only"),
        "no model.json": False_(not_whole, "AdapterInvalid", "has no model.json"),
        "an embedding": False_(embedding, "TargetModulesMismatch", "changes embed_tokens"),
        "no folder": False_(lambda folder: None, "AdapterNotFound", "there is no models/"),
    }


# --- the tests --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ServedFiles:
    made = make_files(tmp_path_factory.mktemp("pod") / "claim", GOOD)
    assert len(set(made.answers.values())) == len(made.answers), "each answers recognisably"
    return made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pod(files: ServedFiles) -> AsyncIterator[ServingPod]:
    vllm = VllmSpec.model_validate({"maxModelLen": 512, "maxLoraRank": 16, "maxLoras": 40})
    async with serving_pod(files.folder.parent, f"base/{BASE}", ROUTES, vllm=vllm) as made:
        refused = await ask(made, "a")
        assert refused.status == 503
        assert "the engine is down" in refused.error
        took = await made.until(lambda: made.keeper.ready, seconds=300)
        print(f"\npod: ready {took:.1f} s after vLLM was started")
        yield made


async def test_each_route_answers_from_its_own_adapter(pod: ServingPod, files: ServedFiles) -> None:
    for name in GOOD:
        adapter = pod.adapter(name)
        assert (adapter.effective, adapter.reason, adapter.loaded) == ("True", "Effective", True)
        print(f"{name}: {adapter.message}")
    for route, name in {"a": "ft_a", "b": "ft_b", BASE: BASE}.items():
        for stream in (False, True):
            assert await ask(pod, route, stream=stream) == Answer(200, name, files.answers[name], True)
        assert await completion_logprobs(pod, pod.url, route) == await completion_logprobs(pod, pod.engine.url, name)
    for name in ("ft_a", "nobody"):
        assert (await ask(pod, name)).status == 404, "clients know routes, not model_ids"


async def completion_logprobs(pod: ServingPod, url: str, model: str) -> list[float]:
    body = {"model": model, "prompt": "What is", "max_tokens": 8, "temperature": 0, "logprobs": 0}
    async with pod.session.post(f"{url}/v1/completions", json=body) as response:
        assert response.status == 200, await response.text()
        value = await response.json()
        return [round(x, 4) for x in value["choices"][0]["logprobs"]["token_logprobs"]]


async def test_no_false_serving_answers_and_the_good_ones_go_on(
    pod: ServingPod, files: ServedFiles, tmp_path: Path
) -> None:
    cases = false_servings(files, tmp_path)
    names = {case: f"ft_false_{number}" for number, case in enumerate(cases)}
    for case, false in cases.items():
        await asyncio.to_thread(false.make, files.folder / "models" / names[case])
    # Beside each a route of its own, and one in which it shares with a good adapter.
    routes = ROUTES | {case: names[case] for case in cases}
    routes |= {f"{case}, shared": {"ft_a": 1, names[case]: 99} for case in cases}
    allowed = {"a": {"ft_a"}, "b": {"ft_b"}, BASE: {BASE}, **{f"{case}, shared": {"ft_a"} for case in cases}}
    watched = {route: allowed[route] for route in ("a", "b", BASE, "zeroed B, shared", "alpha doubled, shared")}
    never: dict[str, set[str]] = {"zeroed B": set(), "alpha doubled": set(), "another's weights": set()}
    pod.want(ROUTES | {route: "ft_a" for route in watched if route not in (*ROUTES, BASE)})
    async with clients(pod, files, watched) as crowd:
        await asyncio.sleep(0.5)
        pod.want(routes)
        async with clients(pod, files, never) as others:
            took = await pod.until(pod.settled, seconds=240)
        await asyncio.sleep(0.5)
        faults: list[tuple[str, object]] = []
        for case, false in cases.items():
            found = pod.adapter(names[case])
            print(f"false serving: {case} -> {found.reason}")
            if (found.reason, found.effective) != (false.reason, false.effective) or false.words not in found.message:
                faults.append((case, found))
            for stream in (False, True):
                answer = await ask(pod, case, stream=stream)
                if answer.status != 503 or false.reason not in answer.error or false.words not in answer.error:
                    faults.append((case, answer))
                answer = await ask(pod, f"{case}, shared", stream=stream)
                if answer != Answer(200, "ft_a", files.answers["ft_a"], True):
                    faults.append((f"{case}, shared", answer))
        assert not faults
        print(f"{len(cases)} false servings settled in {took:.1f} s; meanwhile {crowd.counts()}")
    assert (crowd.wrong, crowd.refused, crowd.cut) == ([], Counter(), Counter()), "the good ones went on"
    assert (others.wrong, others.good, set(others.refused)) == ([], Counter(), set(never))
    assert min(crowd.good[name] for name in ("ft_a", "ft_b", BASE)) > 20
    assert pod.keeper.ready, "one bad adapter takes nobody else down"
    async with pod.session.get(f"{pod.url}/v1/models") as response:
        listed = {model["id"] for model in (await response.json())["data"]}
    assert listed == {"a", "b", BASE, *(f"{case}, shared" for case in cases)}


async def test_what_vllm_says_is_in_the_message(pod: ServingPod) -> None:
    case = next(adapter for adapter in pod.keeper.report().adapters if adapter.reason == "LoadFailed")
    name = case.model_id
    body = {"lora_name": name, "lora_path": str(pod.claim / "models" / name)}
    async with pod.session.post(f"{pod.engine.url}/v1/load_lora_adapter", json=body) as response:
        said = json.loads(await response.text())["error"]["message"]
        assert response.status != 200
    print(f"vLLM says: {said}\nthe agent: {case.message}")
    assert " ".join(said.split())[:200] in case.message


async def test_the_list_changes_while_streams_run(pod: ServingPod, files: ServedFiles) -> None:
    """Adapters come, move between routes and go; nobody on the other routes notices."""
    models = files.folder / "models"
    derive(models / "ft_b", models / "ft_later")
    files.answers["ft_later"] = files.answers["ft_b"]
    pod.want(ROUTES)
    watched = {"a": {"ft_a"}, "b": {"ft_a", "ft_b"}, BASE: {BASE}}
    times = []
    async with clients(pod, files, watched, pause=0.01) as crowd:
        for _ in range(5):
            pod.want(ROUTES | {"later": "ft_later"})
            times.append(await pod.until(lambda: pod.adapter("ft_later").reason == "Effective"))
            assert await ask(pod, "later") == Answer(200, "ft_later", files.answers["ft_later"], True)
            pod.want({"a": "ft_a", "b": {"ft_a": 1, "ft_b": 1}, "later": "ft_later"})
            await asyncio.sleep(0.2)
            pod.want(ROUTES)
            assert (await ask(pod, "later")).status == 404
            await pod.until(lambda: "ft_later" not in pod.keeper._engine_has)
        counted = crowd.counts()
    print(f"list changed 15 times: a new adapter answers after {max(times):.2f} s at most; {counted}")
    assert (crowd.wrong, crowd.refused, crowd.cut) == ([], Counter(), Counter())
    assert min(crowd.good[name] for name in ("ft_a", "ft_b", BASE)) > 20
