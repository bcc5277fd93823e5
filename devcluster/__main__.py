"""`python -m devcluster`: a real one-node Kubernetes on this machine.

build                     compile and install what a node needs (once; found again afterwards)
up [--name N] [--gpus N]  start a cluster and print its kubeconfig's path
image build NAME          build an image from the project's Dockerfiles: operator, trainer, vllm, stand-in or all
load IMAGE [--name N]     hand an image to the cluster's containerd
env [--name N]            shell lines that point kubectl and helm at the cluster
status                    the clusters that run
down [--name N]           stop a cluster; nothing of it stays but the images
"""

from __future__ import annotations

import argparse
import sys

from devcluster import build, launcher
from devcluster.cluster import Cluster
from devcluster.images.storage import ImageError
from devcluster.kube_router import build_kube_router
from devcluster.kueue_install import build_kueue
from devcluster.paths import kubeconfig, state_dir

EXIT_USAGE = 64


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["image"]:
        from devcluster import images

        return images.main(arguments[1:])
    args = _parser().parse_args(arguments)
    try:
        return _run(args)
    except (build.BuildError, launcher.ClusterError, ImageError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m devcluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build")
    building.add_argument("--kueue", action="store_true", help="Kueue as well, for the tests")
    building.add_argument("--network-policies", action="store_true", help="what enforces them as well, for the tests")
    commands.add_parser("status")
    for name in ("up", "down", "env", "load"):
        command = commands.add_parser(name)
        command.add_argument("--name", default="default", help="which cluster (default: default)")
        if name == "up":
            command.add_argument("--gpus", type=int, default=0, help="pretend nvidia.com/gpu capacity")
            command.add_argument("--fresh", action="store_true", help="without the images loaded earlier")
            command.add_argument("--fast-controllers", action="store_true", help="raised queue limits")
            command.add_argument("--network-policies", action="store_true", help="enforce them")
        if name == "load":
            command.add_argument("image", help="name of an image that buildah has")
    return parser


def _run(args: argparse.Namespace) -> int:
    match args.command:
        case "build":
            print(build.build())
            if args.kueue:
                print(build_kueue())
            if args.network_policies:
                print(build_kube_router())
        case "up":
            options = ("gpus", "fresh", "fast_controllers", "network_policies")
            print(launcher.up(args.name, **{option: getattr(args, option) for option in options}))
        case "down":
            if args.name not in (up := launcher.running()):
                print(f"no cluster {args.name} runs here; running: {', '.join(up) or 'none'}", file=sys.stderr)
            launcher.down(args.name)  # in any case: it sweeps what one that was killed has left
        case "status":
            for name in launcher.running():
                print(f"{name}\t{kubeconfig(name)}")
        case "load":
            Cluster(args.name).load(args.image)
        case "env":
            plan = Cluster(args.name).plan
            print(f"export KUBECONFIG={state_dir(args.name) / 'kubeconfig'}")
            print(f'export PATH="{plan.programs}:$PATH"')
            print(f"export DEVCLUSTER_HOST_ADDRESS={plan.host_address}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
