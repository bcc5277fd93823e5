"""`fetch`: put the sources of a spec on the claim, each at the revision that its URI had at first sight.

The revision is kept on the claim before a byte is fetched, under a name of the custom resource's own: whichever pod
comes next, for whatever reason, fetches that and nothing newer.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from llm_tuning.core.figures import DATASET_REVISION, MODEL_REVISION, WAITING_MESSAGE, WAITING_REASON
from llm_tuning.core.files import read_json, write_json
from llm_tuning.core.model import input_error
from llm_tuning.errors import InputError, Problem
from llm_tuning.pod.contract import (
    FETCH_VARIABLE,
    ROOT,
    ROOT_VARIABLE,
    FetchedSource,
    FetchInput,
    FetchResult,
    PodReason,
    SourceInput,
)
from llm_tuning.pod.credentials import credentials_of
from llm_tuning.pod.job import PodJob
from llm_tuning.progress.progress import Progress
from llm_tuning.progress.snapshot import Snapshot
from llm_tuning.sources.fetch import fetch
from llm_tuning.sources.origin import origin_of
from llm_tuning.sources.pace import Meter, Transfer
from llm_tuning.sources.patience import Limits, Patience
from llm_tuning.sources.store import FOLDER
from llm_tuning.sources.uri import Kind, Source, parse_uri

log = logging.getLogger(__name__)

PINS = ".pins"
"""Below `sources/`: what URIs were resolved to, a file for each custom resource.

A pin bridges the time from the first sight until the operator has the revision in the status, which it passes to every
later pod: minutes as a rule, and days for an InferenceService whose fetch fails, which touches its pin at each attempt.
So one that nobody has used for PIN_SECONDS is of no use, whether its object is there or gone. The pods that fetch
remove those, or a small file for each object would be left for good. Were one removed in the moment of its use, a URI
of which no status says a revision would be resolved once more: no run has begun with the first one.
"""
PIN_SECONDS = 30 * 86_400
"""By the volume's own clock: ages are differences to the pin of the pod itself, touched a moment ago."""
REVISIONS = {"model": MODEL_REVISION, "dataset": DATASET_REVISION}
CA_FILE = Path("/tmp/ca.pem")
CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE")


def run(job: PodJob | None) -> FetchResult:
    """Fetch every source that the input names; raises InputError (SourceRefused) or TryAgain (SourceBusy)."""
    given = _input()
    if given.ca_file is not None:
        trust_too(Path(given.ca_file), CA_FILE)
    root = Path(os.environ.get(ROOT_VARIABLE, ROOT))
    fetching = _Fetching(given, root)
    try:
        found = {source.field: fetching.one(source) for source in given.sources}
    finally:
        fetching.close()
    fetching.forget_old_pins()
    said = "; ".join(f"{source.uri} is at {found[source.field].path}" for source in given.sources)
    return FetchResult(ok=True, reason=PodReason.FETCHED, message=said, sources=found)


def trust_too(extra: Path, bundle: Path) -> None:
    """Have this process trust the CAs in `extra` besides those that it knows; raises InputError."""
    known = Path(ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt")
    own = known.read_bytes() if known.is_file() else b""
    bundle.write_bytes(own.rstrip() + b"\n" + extra.read_bytes())
    try:
        ssl.create_default_context(cafile=str(bundle))
    except ssl.SSLError:
        rule = "holds no certificates in PEM that can be read"
        raise InputError(Problem("Helm value sources.caBundle", rule, "give the CA's certificate as PEM")) from None
    os.environ.update(dict.fromkeys(CA_VARIABLES, str(bundle)))


def _input() -> FetchInput:
    text = os.environ.get(FETCH_VARIABLE)
    if text is None:
        raise InputError(Problem(FETCH_VARIABLE, "is not set", "it is the operator that starts this program"))
    try:
        return FetchInput.model_validate_json(text)
    except ValidationError as error:
        raise input_error(FetchInput, error) from None


@dataclass
class _Fetching:
    """The sources of one pod, one after the other: each has credentials of its own."""

    given: FetchInput
    root: Path
    progress: Progress = field(default_factory=Progress)
    revisions: dict[str, str] = field(default_factory=dict)
    """On the wire, of what is resolved by now."""
    last: Snapshot = field(default_factory=Snapshot)

    def one(self, asked: SourceInput) -> FetchedSource:
        """Fetch one source, at the revision of the first sight."""
        source = parse_uri(asked.uri, Kind(asked.field))
        folder = Path(asked.credentials) if asked.credentials is not None else None
        with credentials_of(folder, f"spec.{asked.field}.credentialsSecret"):
            commit = asked.revision or named_commit(source) or self._pinned(asked)
            if commit is None:
                commit = resolve(source, self._watch(asked.field))
                self._pin(asked, commit)
            self.revisions[REVISIONS[asked.field]] = commit
            log.info("%s is at %s", asked.uri, commit)
            found = fetch(source, self.root / FOLDER, commit=commit, watch=self._watch(asked.field))
        path = found.path.relative_to(self.root).as_posix()
        return FetchedSource(revision=commit, path=path, bytes=found.stored.record.size)

    def close(self) -> None:
        self.progress.close(self.last)

    def _watch(self, group: str) -> Callable[[Transfer], None]:
        def show(now: Transfer) -> None:
            words = dict(self.revisions)
            if now.waiting:
                words |= {WAITING_REASON: now.waiting, WAITING_MESSAGE: f"spec.{group}.uri: {now.stage}"}
            self.last = Snapshot(
                f"{group}: {now.stage}",
                bytes=now.done_bytes,
                total_bytes=now.total_bytes,
                bytes_per_second=now.bytes_per_second,
                remaining_seconds=now.remaining_seconds,
                words=words,
                stepping=True,
            )
            self.progress.update(self.last)

        return show

    # --- pins -------------------------------------------------------------------------------------------------------

    @property
    def _pin_file(self) -> Path:
        return self.root / FOLDER / PINS / f"{self.given.pin}.json"

    def _pins(self) -> dict[str, str]:
        try:
            known = read_json(self._pin_file, most=1 << 16)
        except (OSError, ValueError):
            return {}
        return {str(uri): str(commit) for uri, commit in known.items()} if isinstance(known, dict) else {}

    def _pinned(self, asked: SourceInput) -> str | None:
        with suppress(OSError):  # before it is read: from here on it is young
            os.utime(self._pin_file)
        return self._pins().get(f"{asked.field} {asked.uri}")

    def _pin(self, asked: SourceInput, commit: str) -> None:
        pins = self._pins() | {f"{asked.field} {asked.uri}": commit}
        write_json(self._pin_file, pins)

    def forget_old_pins(self) -> None:
        """Remove the pins that nobody has used for PIN_SECONDS; what goes wrong is left for the next pod."""
        with suppress(OSError):
            oldest = self._pin_file.stat().st_mtime - PIN_SECONDS
            old = [entry.path for entry in os.scandir(self._pin_file.parent) if entry.stat().st_mtime < oldest]
            for path in old:
                os.unlink(path)


def named_commit(source: Source) -> str:
    """Return the commit that the URI itself names, "" where it names none: nothing has to be kept of it."""
    return source.revision if source.is_pinned else source.sha256


def resolve(source: Source, watch: Callable[[Transfer], None]) -> str:
    """Return the commit that `source` is at now, asking again while its server is busy."""
    origin = origin_of(source)
    return Patience(Limits(), Meter(), watch).run(lambda: origin.resolve(source))
