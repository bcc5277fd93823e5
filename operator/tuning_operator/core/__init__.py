"""What both kinds stand on: cache, queue, reconciler loop, the one place that writes, Lease, metrics, Events."""
