"""The control plane: observes resources, publishes policy, leases capacity, judges rollouts, injects sidecars."""
