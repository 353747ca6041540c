"""The benchmark: what a sidecar costs, beside the simplest honest proxy and beside peers. `make bench` prints it."""
