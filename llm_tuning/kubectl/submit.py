"""`kubectl tuning submit -f FILE`: create what a file has, checked as a whole before anything is created."""

from __future__ import annotations

import argparse
from pathlib import Path

from llm_tuning.api import kube
from llm_tuning.api.yaml import load_yaml_objects
from llm_tuning.client import Job
from llm_tuning.client.specs import checked
from llm_tuning.errors import EXIT_OK, InputError, Problem
from llm_tuning.kubectl.cluster import client_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument(
        "-f", "--filename", action="append", required=True, metavar="FILE", help="YAML file; - is standard input"
    )
    parser.add_argument("-w", "--watch", action="store_true", help="stay until the TuningJobs have finished")


def run(args: argparse.Namespace) -> int:
    """Create them, in the order of the files; raises InputError with the problems of all before the first one."""
    objects, problems = [], list[Problem]()
    for name in args.filename:
        for values in load_yaml_objects(None if name == "-" else Path(name)):
            try:
                objects.append(checked(values))
            except InputError as error:
                called = (values.get("metadata") or {}).get("name") or values.get("kind") or "an object"
                problems += [Problem(f"{name}: {called}: {p.where}", p.rule, p.fix) for p in error.problems]
    if problems:
        raise InputError(problems)
    made = []
    for values in objects:
        with client_of(args, namespace=values["metadata"].get("namespace")) as client:
            found = client.create(values)
        print(f"{found.kind.lower()}.{kube.GROUP}/{found.name} created", flush=True)
        made.append(found)
    for job in made if args.watch else []:
        if isinstance(job, Job):
            with client_of(args, namespace=job.namespace) as client:
                print(client.wait(job.name))
    return EXIT_OK
