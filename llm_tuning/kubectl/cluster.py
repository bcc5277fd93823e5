"""What the commands share: the client for the flags given, and objects by the names that people type."""

from __future__ import annotations

import argparse

from llm_tuning.api import inference_service, kube, tuning_job
from llm_tuning.client import Job, NotFound, Service, TuningClient
from llm_tuning.core.suggestions import did_you_mean
from llm_tuning.errors import InputError, Problem

KINDS = {
    kind: module.KIND
    for module in (tuning_job, inference_service)
    for kind in (module.SHORT_NAME, module.SINGULAR, module.PLURAL, f"{module.PLURAL}.{kube.GROUP}")
}
NAME_HELP = "NAME, tj/NAME or tisvc/NAME; a bare name is a TuningJob's, else an InferenceService's"


def client_of(args: argparse.Namespace, *, namespace: str | None = None) -> TuningClient:
    """Build the client for --namespace (else `namespace`), --context and --kubeconfig."""
    return TuningClient(namespace=args.namespace or namespace, context=args.context, kubeconfig=args.kubeconfig)


def find(client: TuningClient, name: str) -> Job | Service:
    """Find the object that `name` means; raises NotFound in the words of both kinds."""
    prefix, slash, rest = name.rpartition("/")
    if slash:
        kind = KINDS.get(prefix.lower())
        if kind is None:
            fix = did_you_mean(prefix.lower(), KINDS, otherwise="write tj/NAME or tisvc/NAME")
            raise InputError(Problem(name, f"{prefix!r} is no kind of ours", fix))
        return client.get(rest) if kind == tuning_job.KIND else client.get_service(rest)
    try:
        return client.get(name)
    except NotFound:
        try:
            return client.get_service(name)
        except NotFound:
            kinds = f"neither a TuningJob nor an InferenceService {name}"
            raise NotFound(f"there is {kinds} in namespace {client.namespace}") from None
