"""Many workers: the cluster, the job on it, its folder and its display."""
