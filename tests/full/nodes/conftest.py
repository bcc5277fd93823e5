"""The fixtures of a pod's program as a process of its own."""

from tests.support.pod_process import claim, filled

__all__ = ["claim", "filled"]
