"""What a build needs to know of this machine, and an image must not.

A step that installs packages has to trust the machine's certificates and to ask the machine's package index. Both are
mounted for as long as the build runs: nothing of them is in a layer, a label or the history. Proxies reach the steps
through buildah in the same way. uv's cache is the user's, so that torch is not downloaded a second time.
"""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
from pathlib import Path

CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
"""Where Debian's programs look for certificates; it exists in the base image, so that no empty file is left behind."""


def options(scratch: Path) -> list[str]:
    """buildah's options that mount this machine's settings; `scratch` is a folder that lives as long as the build."""
    _write_settings(scratch)
    found = ["--volume", f"{scratch}:/root/.config:ro"]
    uv_cache().mkdir(parents=True, exist_ok=True)
    found += ["--volume", f"{uv_cache()}:/root/.cache/uv", "--build-arg", "UV_NO_CACHE=0"]
    if (bundle := certificates()) is not None:
        found += ["--volume", f"{bundle}:{CERTIFICATES}:ro"]
    return found


def certificates() -> Path | None:
    """The bundle of certificates that programs of this machine trust."""
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT"):
        if (value := os.environ.get(name)) and Path(value).is_file():
            return Path(value)
    candidates = (ssl.get_default_verify_paths().cafile, CERTIFICATES)
    return next((Path(name) for name in candidates if name and Path(name).is_file()), None)


def uv_cache() -> Path:
    """The user's cache of uv."""
    if given := os.environ.get("UV_CACHE_DIR"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uv"


def _write_settings(folder: Path) -> None:
    """pip's and uv's settings, as the files in which root's are looked for."""
    names = ("index-url", "extra-index-url", "trusted-host")
    indexes = {name: value for name in names if (value := _pip_setting(name))}
    pip = {"cert": CERTIFICATES, "disable-pip-version-check": "1", **indexes}
    (folder / "pip").mkdir()
    (folder / "pip" / "pip.conf").write_text("[global]\n" + "".join(f"{name} = {pip[name]}\n" for name in pip))
    (folder / "uv").mkdir()
    own = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "uv" / "uv.toml"
    system = Path("/etc/uv/uv.toml")
    given = next((path.read_text() for path in (own, system) if path.is_file()), "")
    settings = {"system-certs": True, **_uv_indexes()}
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in settings.items() if name not in given]
    (folder / "uv" / "uv.toml").write_text("".join(lines) + given)


def _pip_setting(name: str) -> str | None:
    if value := os.environ.get(f"PIP_{name.upper().replace('-', '_')}"):
        return value
    pip = shutil.which("pip") or shutil.which("pip3")
    command = [pip, "config", "get", f"global.{name}"] if pip else ["false"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None


def _uv_indexes() -> dict[str, str | list[str]]:
    default = os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("UV_INDEX_URL")
    further = os.environ.get("UV_INDEX") or os.environ.get("UV_EXTRA_INDEX_URL")
    return ({"index-url": default} if default else {}) | ({"extra-index-url": further.split()} if further else {})
