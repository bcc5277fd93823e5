"""A kubeconfig is used as kubectl uses it: context, namespace, certificates, tokens, proxies; or a pod's account."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.config import incluster_config

from llm_tuning.client import Connection, TuningClient, connection
from llm_tuning.errors import InputError


def kubeconfig(path: Path, *, cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None) -> Path:
    """Two contexts: `here` in namespace team, which is the current one, and `there` without a namespace."""
    contexts = [
        {"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "team"}},
        {"name": "there", "context": {"cluster": "c", "user": "u"}},
    ]
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1", **(cluster or {})}}],
        "users": [{"name": "u", "user": user or {}}],
        "contexts": contexts,
        "current-context": "here",
    }
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_the_current_context_or_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = kubeconfig(tmp_path / "k", user={"token": "abc"})
    found = Connection.load(kubeconfig=file)
    assert (found.server, found.namespace, found.token()) == ("http://127.0.0.1:1", "team", "Bearer abc")
    assert Connection.load(kubeconfig=file, context="there").namespace == "default"
    assert Connection.load(kubeconfig=file, namespace="other").namespace == "other"
    monkeypatch.setenv("KUBECONFIG", str(file))
    assert Connection.load().namespace == "team"


def test_the_file_in_the_home_folder(tmp_path: Path) -> None:
    (tmp_path / ".kube").mkdir()
    kubeconfig(tmp_path / ".kube" / "config")
    assert Connection.load().namespace == "team"


def test_what_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no kubeconfig was found and this does not run in a pod; set KUBECONFIG"):
        Connection.load()
    with pytest.raises(InputError, match=r"none: does not exist, and a kubeconfig is needed; give one that does"):
        Connection.load(kubeconfig=tmp_path / "none")
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path}/none:{tmp_path}/nor-this")
    with pytest.raises(InputError, match=r"nor-this: does not exist, and .*; set KUBECONFIG to one that does"):
        TuningClient()
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path}/none:{kubeconfig(tmp_path / 'k')}")
    assert Connection.load().namespace == "team"  # as kubectl: one of them is enough
    monkeypatch.delenv("KUBECONFIG")
    with pytest.raises(InputError, match=r"cannot be used: .*nowhere"):
        Connection.load(kubeconfig=kubeconfig(tmp_path / "k"), context="nowhere")
    (tmp_path / "broken").write_text("a: [")
    with pytest.raises(InputError, match="broken: cannot be used"):
        Connection.load(kubeconfig=tmp_path / "broken")


def test_tls_is_checked_unless_the_file_says_not_to(tmp_path: Path) -> None:
    server = {"server": "https://cluster.example:6443", "tls-server-name": "other.example"}
    found = Connection.load(kubeconfig=kubeconfig(tmp_path / "a", cluster=server))
    assert found.tls is not None
    assert (found.tls.verify_mode, found.tls.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert found.server_name == "other.example"
    insecure = {"server": "https://cluster.example:6443", "insecure-skip-tls-verify": True}
    found = Connection.load(kubeconfig=kubeconfig(tmp_path / "b", cluster=insecure))
    assert found.tls is not None
    assert found.tls.verify_mode == ssl.CERT_NONE


def test_proxies_of_the_file_and_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = {"server": "http://cluster.example:6443"}
    file = kubeconfig(tmp_path / "a", cluster=server)
    assert Connection.load(kubeconfig=file).proxy is None
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    assert Connection.load(kubeconfig=file).proxy == "http://proxy.example:3128"
    monkeypatch.setenv("NO_PROXY", ".example")
    assert Connection.load(kubeconfig=file).proxy is None
    monkeypatch.delenv("NO_PROXY")
    given = kubeconfig(tmp_path / "b", cluster={**server, "proxy-url": "http://of-the-file.example:1"})
    assert Connection.load(kubeconfig=given).proxy == "http://of-the-file.example:1"


def test_a_pod_uses_its_service_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import certifi

    (tmp_path / "token").write_text("of-the-pod")
    (tmp_path / "namespace").write_text("team\n")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", certifi.where())
    monkeypatch.setattr(connection, "NAMESPACE_FILE", tmp_path / "namespace")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    found = Connection.load()
    assert (found.server, found.namespace, found.token()) == ("https://10.0.0.1:443", "team", "bearer of-the-pod")
