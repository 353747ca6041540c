"""Progressive delivery: counts per arm, the judge, and the rollout's state machine. Pure."""
