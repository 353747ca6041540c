"""The control plane: observes resources, compiles and publishes policy, leases capacity, judges rollouts, injects sidecars."""
