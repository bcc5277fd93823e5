"""What the fine-tuning API's account may do and what not, asked of the API server."""

from __future__ import annotations

from tests.support.operator_rights import DENIED as OPERATORS_DENIED

GROUP = "tuning.llmtuning.dev"
ALLOWED = [
    *((verb, f"{GROUP}/tuningjobs") for verb in ("get", "list", "create", "patch")),
    *((verb, f"{GROUP}/inferenceservices") for verb in ("list", "create", "patch")),
]
_THEIRS = {
    *ALLOWED,
    ("get", "/secrets/llm-tuning-credentials"),
}
DENIED = [
    *(each for each in OPERATORS_DENIED if each not in _THEIRS),
    *(
        (verb, f"{GROUP}/{kind}")
        for verb in ("delete", "update", "watch")
        for kind in ("tuningjobs", "inferenceservices")
    ),
    *(
        (verb, f"{GROUP}/{kind}//status")
        for verb in ("patch", "update")
        for kind in ("tuningjobs", "inferenceservices")
    ),
    *((verb, "/secrets/llm-tuning-api-keys") for verb in ("get", "patch", "delete")),
    *((verb, kind) for verb in ("get", "list", "create") for kind in ("/pods", "/configmaps", "batch/jobs")),
    ("list", "/secrets"),
]
