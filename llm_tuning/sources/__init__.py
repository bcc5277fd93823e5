"""Sources: a hub name, an object store or an address in, a folder on this disk out: pinned, hashed, whole.

What others build on (each from its module; importing this package imports nothing, so that `--help` stays quick):

    from llm_tuning.sources.uri import Kind, Source, hub_source, is_uri, parse_uri
    from llm_tuning.sources.fetch import Fetched, fetch
    from llm_tuning.sources.pace import Transfer
    from llm_tuning.sources.reasons import Passing, SourceBusy, SourceRefused, Terminal
    from llm_tuning.sources.store import Stored, remove, source_at, stored, unfinished, verify

    source = parse_uri("hf://Qwen/Qwen3-0.6B@main", Kind.MODEL)     pure; InputError with field `model.uri` and the fix
    fetched = fetch(source, root, commit="", watch=show)            root: the folder `sources` of a volume
    fetched.path, fetched.commit, fetched.stored.record.files       what a run takes; what status and manifest say

- **Pinned.** `fetch` resolves a name once. Whoever stores `fetched.commit` passes it as `commit=` from then on: then
  the name is never resolved again, and where the folder is here nobody is asked at all.
  `origin_of(source).resolve(source)` (module `origin`) is the resolving alone, for a status that wants the commit
  before the bytes.
- **Ends.** `SourceRefused` (an InputError, exit 64) has a `reason` of `Terminal`; `SourceBusy` (a TryAgain, exit 75)
  one of `Passing`, and `wait_seconds` where the server named a time. Both hold one sentence with the fix and no
  credential. `fetch` itself waits and tries again (`patience.Limits`) before it raises `SourceBusy`; the next call
  continues.
- **Seen.** `watch` is called a few times a second with a `Transfer`: stage in words, bytes, total, speed, time left.
- **Whole.** A folder with `source.json` is whole. `source_at(path)` tells for any path, copied or not, where it is
  from.
- **Credentials and network** come from the environment alone: HF_ENDPOINT, HF_TOKEN; AWS_ENDPOINT_URL, AWS_REGION,
  AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY; HTTPS_PROXY, NO_PROXY; SSL_CERT_FILE (and AWS_CA_BUNDLE for s3).

How it is done, in the order of the story: `uri` (grammar) -> `origin` with `hub`, `s3`, `web` over `http` (commit,
list, bytes) -> `selection` (what is taken, what is refused) -> `claim` (single flight) -> `filling` (room, parallel,
publish) with `transfer` (one file) and `patience` (tries) -> `store` (what lies on the disk). `fetch` is the story
itself.
"""
