"""The programs of a node: their configuration files and command lines. Nothing here starts anything."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from devcluster.certificates import Authority, Identity

POD_RANGE = "10.244.0.0/16"
SERVICE_RANGE = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
DNS_SERVICE = "10.96.0.10"
API_PORT = 6443
PAUSE_IMAGE = "localhost/devcluster/pause:1"
NODE = "node"
RUNTIME_ENDPOINT_TIMEOUT = "10m"
"""The kubelet's limit for one call to containerd; unpacking 6 GB takes minutes on a busy machine."""

START_ORDER = (
    "etcd",
    "kube-apiserver",
    "containerd",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "coredns",
)
FIREWALL = "kube-router"
"""Started once the node is known, which it asks for, and only where the plan has it."""


@dataclass(frozen=True)
class Plan:
    """One cluster: where it keeps things, its addresses, and what was asked for."""

    name: str
    state: Path
    programs: Path
    images: Path
    """containerd's store, which outlives the cluster: images need not be loaded again."""
    node_address: str
    """Of the node, in its own network namespace; the host reaches the API server there."""
    host_address: str
    """Of the host's end of the cable; pods reach a server that a test runs there."""
    gpus: int = 0
    fast_controllers: bool = False
    """Raise the queue limits of controller-manager and scheduler, for benchmarks."""
    volumes: int = 40
    firewall: Path | None = None
    """The folder of kube-router, where it is to enforce NetworkPolicies."""

    @property
    def certificates(self) -> Path:
        return self.state / "certificates"

    @property
    def run(self) -> Path:
        """Sockets; short, since a socket's path has 107 characters at most."""
        return self.state / "run"

    @property
    def cgroup(self) -> str:
        """The parent of all pods' cgroups, in every hierarchy."""
        return f"/devcluster-{self.name}"

    @property
    def server(self) -> str:
        return f"https://{self.node_address}:{API_PORT}"

    def write(self) -> None:
        values = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}
        (self.state / "plan.json").write_text(json.dumps(values, indent=2))

    @classmethod
    def read(cls, state: Path) -> Plan:
        values = json.loads((state / "plan.json").read_text())
        paths = ("state", "programs", "images", "firewall")
        return cls(**{**values, **{key: Path(values[key]) for key in paths if values[key] is not None}})


def write_configuration(plan: Plan) -> None:
    """Certificates, kubeconfigs and every part's configuration file."""
    authority = Authority(plan.certificates)
    authority.service_account_key()
    hosts = (plan.node_address, API_SERVICE, "127.0.0.1", "localhost", "kubernetes", "kubernetes.default")
    names = ("kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
    authority.issue("kube-apiserver", Identity("kube-apiserver", hosts=(*hosts, *names)))
    authority.issue("kubelet-client", Identity("kube-apiserver-kubelet-client", ("system:masters",)))
    authority.issue("kubelet", Identity(f"system:node:{NODE}", ("system:nodes",), (NODE, plan.node_address)))
    users = {
        "kube-controller-manager": Identity("system:kube-controller-manager"),
        "kube-scheduler": Identity("system:kube-scheduler"),
        "kube-proxy": Identity("system:kube-proxy"),
        "kubelet": Identity(f"system:node:{NODE}", ("system:nodes",)),
        "admin": Identity("admin", ("system:masters",)),
    }
    for part, identity in users.items():
        authority.kubeconfig(plan.certificates / f"{part}.kubeconfig", f"{part}-user", identity, plan.server)
    admin = plan.state / "kubeconfig"
    admin.touch(mode=0o600)
    admin.write_text((plan.certificates / "admin.kubeconfig").read_text())
    (plan.state / "kubelet.yaml").write_text(yaml.safe_dump(_kubelet(plan)))
    (plan.state / "kube-proxy.yaml").write_text(yaml.safe_dump(_kube_proxy(plan)))
    (plan.state / "containerd.toml").write_text(_containerd(plan))
    (plan.state / "Corefile").write_text(_corefile(plan))
    (plan.state / "resolv.conf").write_text("")
    (plan.state / "cni").mkdir(exist_ok=True)
    (plan.state / "cni" / "10-bridge.conflist").write_text(json.dumps(_network(plan)))


def commands(plan: Plan) -> dict[str, list[str]]:
    """The command line of each part, by name."""
    at, state = plan.certificates, plan.state

    def program(name: str) -> str:
        return str(plan.programs / name)

    queue = ["--kube-api-qps=500", "--kube-api-burst=1000"]
    return {
        "etcd": [
            program("etcd"),
            f"--data-dir={state / 'etcd'}",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--unsafe-no-fsync",
            "--log-level=error",
        ],
        "kube-apiserver": [
            program("kube-apiserver"),
            f"--advertise-address={plan.node_address}",
            f"--bind-address={plan.node_address}",
            f"--secure-port={API_PORT}",
            "--etcd-servers=http://127.0.0.1:2379",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--client-ca-file={at / 'ca.crt'}",
            f"--tls-cert-file={at / 'kube-apiserver.crt'}",
            f"--tls-private-key-file={at / 'kube-apiserver.key'}",
            f"--kubelet-certificate-authority={at / 'ca.crt'}",
            f"--kubelet-client-certificate={at / 'kubelet-client.crt'}",
            f"--kubelet-client-key={at / 'kubelet-client.key'}",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={at / 'sa.pub'}",
            f"--service-account-signing-key-file={at / 'sa.key'}",
            "--endpoint-reconciler-type=lease",
            "--shutdown-delay-duration=0s",
        ],
        "containerd": ["containerd", "--config", str(state / "containerd.toml"), "--log-level", "warn"],
        "kube-controller-manager": [
            program("kube-controller-manager"),
            *_kubeconfigs(at / "kube-controller-manager.kubeconfig"),
            f"--root-ca-file={at / 'ca.crt'}",
            f"--service-account-private-key-file={at / 'sa.key'}",
            "--use-service-account-credentials",
            "--bind-address=127.0.0.1",
            "--leader-elect=false",
            *(["--concurrent-job-syncs=20", *queue] if plan.fast_controllers else []),
        ],
        "kube-scheduler": [
            program("kube-scheduler"),
            *_kubeconfigs(at / "kube-scheduler.kubeconfig"),
            "--bind-address=127.0.0.1",
            "--leader-elect=false",
            *(queue if plan.fast_controllers else []),
        ],
        "kubelet": [
            program("kubelet"),
            f"--config={state / 'kubelet.yaml'}",
            f"--kubeconfig={at / 'kubelet.kubeconfig'}",
            f"--node-ip={plan.node_address}",
            f"--hostname-override={NODE}",
        ],
        "kube-proxy": [program("kube-proxy"), f"--config={state / 'kube-proxy.yaml'}", f"--hostname-override={NODE}"],
        "coredns": [program("coredns"), "-conf", str(state / "Corefile"), "-quiet"],
        **({FIREWALL: _firewall(plan, plan.firewall)} if plan.firewall else {}),
    }


def _firewall(plan: Plan, folder: Path) -> list[str]:
    """kube-router with nothing but its firewall; its folder has the iptables that it is to find."""
    return [
        "env",
        f"PATH={folder}:/usr/sbin:/usr/bin:/sbin:/bin",
        str(folder / "kube-router"),
        "--run-firewall=true",
        "--run-router=false",
        "--run-service-proxy=false",
        "--enable-ipv6=false",
        f"--kubeconfig={plan.certificates / 'admin.kubeconfig'}",
        f"--hostname-override={NODE}",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        "--health-port=0",
    ]


def _kubeconfigs(path: Path) -> list[str]:
    """The main one, and those for whom metrics and health are asked by."""
    return [f"--kubeconfig={path}", *(f"--{name}-kubeconfig={path}" for name in ("authentication", "authorization"))]


def _kubelet(plan: Plan) -> dict[str, object]:
    """What it takes on a machine with cgroups v1 whose root disk cAdvisor does not find."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(plan.certificates / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(plan.certificates / "kubelet.crt"),
        "tlsPrivateKeyFile": str(plan.certificates / "kubelet.key"),
        "address": plan.node_address,
        "healthzBindAddress": "127.0.0.1",
        "clusterDomain": "cluster.local",
        "clusterDNS": [DNS_SERVICE],
        "resolvConf": str(plan.state / "resolv.conf"),
        "containerRuntimeEndpoint": f"unix://{plan.run / 'containerd.sock'}",
        "runtimeRequestTimeout": RUNTIME_ENDPOINT_TIMEOUT,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": plan.cgroup,
        "failCgroupV1": False,
        "failSwapOn": False,
        "localStorageCapacityIsolation": False,
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        "imageMaximumGCAge": "0s",
        "maxPods": 250,
        "podLogsDir": "/var/log/pods",
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        "serializeImagePulls": False,
        "kubeAPIQPS": 100,
        "kubeAPIBurst": 200,
        "podPidsLimit": 4096,
        "nodeStatusUpdateFrequency": "5s",
        "shutdownGracePeriod": "0s",
        "enableServer": True,
    }


def _kube_proxy(plan: Plan) -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clusterCIDR": POD_RANGE,
        "bindAddress": plan.node_address,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "clientConnection": {"kubeconfig": str(plan.certificates / "kube-proxy.kubeconfig")},
        # The network namespace has no say over these kernel-wide limits.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "iptables": {"minSyncPeriod": "100ms"},
    }


def _containerd(plan: Plan) -> str:
    """containerd 1.6's own format; the sandbox image is imported before the kubelet starts."""
    return f"""version = 2
root = "{plan.images}"
state = "{plan.run / "containerd"}"
oom_score = 0
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "{plan.run / "containerd.sock"}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{plan.state / "cni"}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"""


def _network(plan: Plan) -> dict[str, object]:
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": "/run/cni-addresses",
            "ranges": [[{"subnet": POD_RANGE}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    port_map = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, port_map]}


def _corefile(plan: Plan) -> str:
    return f"""cluster.local:53 in-addr.arpa:53 {{
  bind {plan.node_address}
  errors
  cache 5
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {plan.certificates / "admin.kubeconfig"}
    pods insecure
    ttl 5
  }}
}}
.:53 {{
  bind {plan.node_address}
  template ANY ANY {{
    rcode NXDOMAIN
  }}
}}
"""
