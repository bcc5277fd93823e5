"""A gzipped tar archive that is the same, byte for byte, whenever and wherever it is packed.

setuptools and helm write the time of packing, the order of the folder and the user into their archives.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

from release.running import ReleaseError


def normalise(archive: Path, *, epoch: int) -> None:
    """Pack an archive of files and folders anew: sorted, without users, every time `epoch` (seconds since 1970).

    Raises ReleaseError for a link or a device: what installs our packages should not meet one.
    """
    buffer = io.BytesIO()
    with tarfile.open(archive) as old, tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as new:
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            if not (member.isfile() or member.isdir()):
                raise ReleaseError(f"{archive.name}: {member.name} is neither a file nor a folder")
            executable = member.isdir() or member.mode & 0o100
            clean = tarfile.TarInfo(member.name)
            clean.type, clean.size, clean.mtime = member.type, member.size, epoch
            clean.mode = 0o755 if executable else 0o644
            new.addfile(clean, old.extractfile(member) if member.isfile() else None)
    with archive.open("wb") as file, gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=epoch) as packed:
        packed.write(buffer.getvalue())
