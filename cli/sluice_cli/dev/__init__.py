"""Local mode: the compiler, the rollout state machine and the sidecar as they are in a cluster, over a folder."""
