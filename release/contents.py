"""Prints what is in an image, as one JSON object. It is run by the image's own Python, which has nothing of ours.

It looks at the files, not at the Dockerfile: the packages of the environment and of the Python below it, and Debian's.
"""

import json
import platform
import subprocess
import sys
from importlib.metadata import distributions

DPKG_FIELDS = "${Package}\t${Version}\t${Architecture}\t${db:Status-Abbrev}\n"
BASE = getattr(sys, "_base_executable", sys.executable)


def python_packages() -> list[dict[str, object]]:
    """The distributions of this environment and of the Python that it was made with."""
    below = json.loads(subprocess.check_output([BASE, "-I", "-c", "import json, sys; print(json.dumps(sys.path))"]))
    found = {}
    for each in distributions(path=list(dict.fromkeys([*sys.path, *below]))):
        found[each.metadata["Name"], each.version] = {
            "name": each.metadata["Name"],
            "version": each.version,
            "expression": (each.metadata.get_all("License-Expression") or [None])[0],
            "text": (each.metadata.get_all("License") or [None])[0],
            "classifiers": each.metadata.get_all("Classifier") or [],
        }
    return list(found.values())


def debian_packages() -> list[dict[str, str]]:
    """The installed packages of the distribution."""
    lines = subprocess.check_output(["dpkg-query", "--show", f"--showformat={DPKG_FIELDS}"], text=True).splitlines()
    rows = [line.split("\t") for line in lines]
    return [
        {"name": name, "version": version, "architecture": architecture}
        for name, version, architecture, status in rows
        if status.startswith("ii")
    ]


def release() -> dict[str, str]:
    """The distribution: ID and VERSION_ID of os-release."""
    values = platform.freedesktop_os_release()
    return {"id": values["ID"], "version": values.get("VERSION_ID", "")}


print(
    json.dumps(
        {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "release": release(),
            "packages": python_packages(),
            "debian": debian_packages(),
        }
    )
)
