"""Where the API server is and as whom to ask it: a kubeconfig as kubectl reads it, or a pod's service account.

Kubeconfigs (exec plugins, tokens that are renewed, certificates, proxies) are read by the `kubernetes` package.
Requests are httpx's, so that one code base serves synchronous and asynchronous callers.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # typeshed lacks it

import yaml

from llm_tuning.errors import InputError, Problem

NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def _no_token() -> str | None:
    return None


@dataclass(frozen=True)
class Connection:
    """How to reach one namespace of one cluster."""

    server: str
    """https://host:port, perhaps with a path."""
    namespace: str = "default"
    tls: ssl.SSLContext | None = None
    """None for plain HTTP."""
    proxy: str | None = None
    token: Callable[[], str | None] = _no_token
    """The Authorization header; asked before each request, since tokens expire. It may block."""
    server_name: str | None = None
    """Name in the server's certificate, where it is not that of `server`."""

    @classmethod
    def load(
        cls, *, namespace: str | None = None, context: str | None = None, kubeconfig: str | Path | None = None
    ) -> Connection:
        """Find the cluster as kubectl does: by `kubeconfig`, $KUBECONFIG, ~/.kube/config, or the pod's service account.

        `namespace` is by default that of the context or of the pod. Raises InputError where nothing of it can be used.
        """
        try:
            from kubernetes import client
            from kubernetes import config as kube_config
        except ImportError:
            raise InputError(
                Problem("", "the client needs the package kubernetes", "install llm-tuning with its extra `client`")
            ) from None
        config: Any = kube_config  # untyped
        configuration: Any = client.Configuration()
        given = str(kubeconfig or os.environ.get("KUBECONFIG") or "")
        files = given or str(Path.home() / ".kube" / "config")
        try:
            if any(os.path.exists(os.path.expanduser(file)) for file in files.split(os.pathsep)):
                config.load_kube_config(files, context, configuration, persist_config=False)
                found = _namespace_of(config, files, context)
            elif given or context:
                fix = "give" if kubeconfig else "set KUBECONFIG to"
                raise InputError(Problem(files, "does not exist, and a kubeconfig is needed", f"{fix} one that does"))
            elif os.environ.get("KUBERNETES_SERVICE_HOST"):
                config.load_incluster_config(configuration)
                found = NAMESPACE_FILE.read_text().strip() if NAMESPACE_FILE.is_file() else "default"
            else:
                rule = "no kubeconfig was found and this does not run in a pod"
                raise InputError(Problem(files, rule, "set KUBECONFIG, or pass `kubeconfig=`"))
        except (config.ConfigException, yaml.YAMLError) as error:
            raise InputError(Problem(files, f"cannot be used: {error}")) from None
        except OSError as error:
            raise InputError(Problem(files, f"cannot be used: {error.strerror or error}")) from None
        return cls(
            server=str(configuration.host).rstrip("/"),
            namespace=namespace or found,
            tls=_tls(configuration),
            proxy=_proxy(configuration),
            token=lambda: configuration.get_api_key_with_prefix("BearerToken"),
            server_name=configuration.tls_server_name,
        )


def _namespace_of(config: Any, files: str, context: str | None) -> str:
    contexts, active = config.list_kube_config_contexts(files)
    chosen = next((known for known in contexts if known["name"] == context), active)
    return str(chosen["context"].get("namespace") or "default")


def _tls(configuration: Any) -> ssl.SSLContext | None:
    if not str(configuration.host).startswith("https"):
        return None
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    if not configuration.verify_ssl:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    return context


def _proxy(configuration: Any) -> str | None:
    """Return the context's proxy-url, or that of the environment unless NO_PROXY has the server."""
    host = urlsplit(configuration.host).hostname or ""
    bypass = configuration.no_proxy and proxy_bypass_environment(host, {"no": configuration.no_proxy})
    return None if bypass or not configuration.proxy else str(configuration.proxy)
