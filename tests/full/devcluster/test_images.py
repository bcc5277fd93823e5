"""The images, built for real from the project's Dockerfiles: what is in them, and above all what is not."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import certifi
import pytest

from devcluster.images import ImageError, build, host, load_into
from devcluster.images.building import ROOT, copied_files
from devcluster.images.exporting import ctr
from devcluster.images.layers import Layer, StoredImage, read_image
from devcluster.images.storage import buildah, environment, image_id, storage_dir
from devcluster.paths import cache_dir

CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
CODE = "opt/llm-tuning"
PACKAGES = "opt/venv/lib/python3.11/site-packages"


@contextmanager
def mounted(reference: str) -> Iterator[Path]:
    """The root file system of an image."""
    container = buildah("from", "--pull-never", reference).strip()
    try:
        yield Path(buildah("mount", container).strip())
    finally:
        buildah("rm", container)


def run_in(reference: str, *command: str) -> str:
    container = buildah("from", "--pull-never", reference).strip()
    try:
        return buildah("run", "--isolation", "chroot", container, "--", *command)
    finally:
        buildah("rm", container)


def inspect(reference: str) -> dict[str, Any]:
    return cast(dict[str, Any], json.loads(buildah("inspect", "--type", "image", reference)))


def machine_values() -> list[str]:
    """Strings of this machine that no image may hold: paths, proxies, package indexes, and what looks like a secret."""
    found = [str(ROOT), str(cache_dir()), str(host.uv_cache())]
    names = re.compile(r"(?i)(PIP_|UV_|.*_PROXY$|.*(TOKEN|SECRET|PASSWORD))")
    found += [value for name, value in os.environ.items() if names.match(name)]
    pip = shutil.which("pip") or "false"
    listed = subprocess.run([pip, "config", "list"], capture_output=True, text=True, check=False).stdout
    found += re.findall(r"='(.+)'$", listed, re.MULTILINE)
    # What every Debian has (the usual bundle of certificates), and what is too short to mean anything.
    return sorted({value for value in found if len(value) > 5 and value not in (host.CERTIFICATES, "localhost")})


@pytest.fixture(scope="module", params=["operator", "trainer"])
def image(request: pytest.FixtureRequest) -> str:
    return build(request.param)


def test_no_file_of_an_image_tells_of_the_machine_that_built_it(image: str) -> None:
    values = machine_values()
    patterns = [argument for value in values for argument in ("-e", value)]
    with mounted(image) as root:
        grep = ["grep", "--recursive", "--fixed-strings", "--files-with-matches", "--text", *patterns, str(root)]
        assert subprocess.run(grep, capture_output=True, env={"LC_ALL": "C"}, check=False).stdout.decode() == ""
        for name in ("hostname", "hosts", "resolv.conf", "machine-id"):
            assert not (path := root / "etc" / name).exists() or path.read_text() == "", name
        for name in ("root/.config", "root/.cache", "tmp", "var/tmp", "etc/pip.conf", "etc/apt/sources.list"):
            path = root / name
            assert not path.exists() or not [file for file in path.rglob("*") if file.is_file()], name


def test_an_image_trusts_the_certificates_of_its_distribution_only(image: str) -> None:
    bundle = host.certificates()
    assert bundle is not None
    with mounted(image) as root:
        of_debian = {path.read_text().strip() for path in (root / "usr/share/ca-certificates").rglob("*.crt")}
        assert set(CERTIFICATE.findall((root / "etc/ssl/certs/ca-certificates.crt").read_text())) <= of_debian
        assert not list((root / "usr/local/share/ca-certificates").glob("*"))
        # A certificate that only this machine trusts is nowhere, its packages' own bundles included.
        own = set(CERTIFICATE.findall(bundle.read_text())) - of_debian - set(CERTIFICATE.findall(certifi.contents()))
        for path in [*root.rglob("*.pem"), *root.rglob("*.crt")]:
            assert (
                path.is_symlink()
                or not path.is_file()
                or not own & set(CERTIFICATE.findall(path.read_text(errors="ignore")))
            ), path


def test_no_label_variable_or_history_tells_of_the_machine_that_built_it(image: str) -> None:
    described = inspect(image)
    config = described["OCIv1"]
    text = json.dumps(config)
    for value in machine_values():
        assert value not in text, value
    assert "Hostname" not in described["Docker"]["config"] or described["Docker"]["config"]["Hostname"] == ""
    names = {line.split("=")[0] for line in config["config"]["Env"]}
    assert names - {"HF_HUB_OFFLINE", "NVIDIA_DRIVER_CAPABILITIES"} == {
        "PATH",
        "PYTHONPATH",
        "PYTHONUNBUFFERED",
        "PYTHONDONTWRITEBYTECODE",
        "HOME",
    }
    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", json.dumps(config["config"]))


def test_it_runs_as_a_user_with_a_name_and_no_rights(image: str) -> None:
    assert inspect(image)["OCIv1"]["config"]["User"] == "65532:65532"
    code = "import os, getpass; print(os.getuid(), os.getgid(), getpass.getuser(), os.access('/opt', os.W_OK))"
    assert run_in(image, "python", "-c", code).split() == ["65532", "65532", "tuning", "False"]


def test_all_code_is_compiled_so_that_a_read_only_root_starts_as_fast(image: str) -> None:
    with mounted(image) as root:
        for source in (root / CODE).rglob("*.py"):
            assert (source.parent / "__pycache__" / f"{source.stem}.cpython-311.pyc").exists(), source
        assert (root / PACKAGES / "pydantic" / "__pycache__" / "main.cpython-311.pyc").exists()


def test_the_operator_image_has_no_training_library_and_no_installer() -> None:
    with mounted(build("operator")) as root:
        installed = {path.name for path in (root / PACKAGES).iterdir()}
        assert not installed & {"torch", "transformers", "peft", "trl", "accelerate", "datasets", "mlflow", "nvidia"}
        assert installed >= {"kopf", "kubernetes", "aiohttp", "cryptography", "jwt", "prometheus_client"}
        assert not (root / "tmp/tools").exists()
        assert {path.name for path in (root / CODE).iterdir()} == {"llm_tuning", "tuning_operator"}


def test_the_operator_image_starts_both_of_its_programs() -> None:
    code = "import tuning_operator.main, llm_tuning.pod.__main__, sys; print('torch' in sys.modules)"
    assert run_in(build("operator"), "python", "-c", code).strip() == "False"


def test_an_image_is_not_built_again_when_nothing_has_changed(image: str) -> None:
    start = time.monotonic()
    before = image_id(image)
    assert build(image.rsplit("/", maxsplit=1)[-1].split(":", maxsplit=1)[0]) == image
    assert image_id(image) == before
    assert time.monotonic() - start < 5


def test_a_change_of_our_code_builds_only_the_layers_with_our_code(tmp_path: Path, image: str) -> None:
    name = image.rsplit("/", maxsplit=1)[-1].split(":", maxsplit=1)[0]
    for part in ("Dockerfile", ".dockerignore", "trainer_image", "llm_tuning", "operator", "requirements"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy2
        copy(ROOT / part, tmp_path / part)
    (tmp_path / "llm_tuning" / "__init__.py").write_text('"""Changed."""\n')
    start = time.monotonic()
    changed = build(name, root=tmp_path, tag="test")
    try:
        assert time.monotonic() - start < 30
        before, after = (read_image(storage_dir() / "storage", str(image_id(one))).layers for one in (image, changed))
        known = {layer.digest for layer in before}
        new = [layer for layer in after if layer.digest not in known]
        assert 1 <= len(new) <= 4
        assert sum(layer.size for layer in new) < 10_000_000
        assert run_in(changed, "python", "-c", "import llm_tuning; print(llm_tuning.__doc__)").strip() == "Changed."
    finally:
        buildah("rmi", changed)


@pytest.fixture
def containerd() -> Iterator[Path]:
    """The socket of a containerd of its own, on the file system that buildah's storage is on."""
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix="test-") as folder:
        config = Path(folder) / "config.toml"
        paths = f'root = "{folder}/root"\nstate = "{folder}/state"\n[grpc]\naddress = "{folder}/socket"\n'
        config.write_text(f'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n{paths}')
        with subprocess.Popen(["containerd", "--config", str(config)], stderr=subprocess.DEVNULL) as process:
            try:
                wait_for((Path(folder) / "socket").exists)
                yield Path(folder) / "socket"
            finally:
                process.terminate()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def snapshots(socket: Path) -> set[str]:
    return {line.split()[0] for line in ctr(socket, "snapshots", "ls").splitlines()[1:]}


def test_an_image_is_handed_over_once_and_shares_its_files(containerd: Path) -> None:
    operator, stand_in = build("operator"), build("stand-in")
    assert load_into(containerd, operator)
    assert not load_into(containerd, operator)
    of_operator = snapshots(containerd)
    assert load_into(containerd, stand_in)
    assert len(snapshots(containerd) - of_operator) == 1
    path = f"{CODE}/llm_tuning/__init__.py"
    found = list(containerd.parent.glob(f"root/*overlayfs/snapshots/*/fs/{path}"))
    with mounted(operator) as root:
        assert [file.read_bytes() for file in found] == [(root / path).read_bytes()]
    assert found[0].stat().st_nlink > 1
    # Collected as garbage with the image, and not in buildah's storage.
    ctr(containerd, "images", "rm", "--sync", operator, stand_in)
    wait_for(lambda: not snapshots(containerd))
    with mounted(operator) as root:
        assert (root / path).exists()


def test_other_buildahs_do_not_disturb_the_handing_over(containerd: Path) -> None:
    operator = build("operator")
    with subprocess.Popen(
        ["sh", "-c", "while buildah images; do :; done"], env=environment(), stdout=subprocess.DEVNULL
    ) as others:
        try:
            for _ in range(3):
                assert load_into(containerd, operator)
                ctr(containerd, "images", "rm", "--sync", operator)
                wait_for(lambda: not snapshots(containerd))
        finally:
            others.terminate()


def test_an_image_that_was_not_built_is_named(containerd: Path) -> None:
    with pytest.raises(ImageError, match="no image localhost/llm-tuning/nothing:dev"):
        load_into(containerd, "localhost/llm-tuning/nothing:dev")


def test_a_chain_id_is_that_of_the_image_specification() -> None:
    layers = [Layer(Path(), f"sha256:{letter * 64}", 1) for letter in "ab"]
    expected = hashlib.sha256(f"sha256:{'a' * 64} sha256:{'b' * 64}".encode()).hexdigest()
    assert StoredImage("", b"", layers).chain_ids() == [layers[0].digest, f"sha256:{expected}"]


def test_the_inputs_of_an_image_are_what_its_dockerfile_copies() -> None:
    operator = {str(path.relative_to(ROOT)) for path in copied_files(ROOT, "Dockerfile")}
    assert operator >= {"requirements/uv.txt", "requirements/operator.txt", "llm_tuning/__init__.py"}
    assert "operator/tuning_operator/__init__.py" in operator
    assert not [name for name in operator if name.startswith(("tests", "requirements/t")) or name.endswith(".pyc")]
    trainer = {str(path.relative_to(ROOT)) for path in copied_files(ROOT, "trainer_image/Dockerfile")}
    assert trainer >= {"requirements/torch.txt", "requirements/trainer.txt", "llm_tuning/__init__.py"}
    assert not [name for name in trainer if name.startswith("operator")]


def test_images_have_the_versions_that_are_tested_here() -> None:
    def pins(name: str) -> dict[str, str]:
        text = (ROOT / "requirements" / f"{name}.txt").read_text()
        return dict(re.findall(r"^([\w.\[\]-]+)==(\S+)", text, re.MULTILINE))

    tested = pins("dev")
    for name in ("operator", "torch", "trainer"):
        assert pins(name).items() <= tested.items()
    assert pins("torch").items() <= pins("trainer").items()
    assert pins("uv")["uv"] in (ROOT / "Makefile").read_text()
