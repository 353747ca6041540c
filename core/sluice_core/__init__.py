"""The domain of Sluice: resources, compiler, limits, breaker, retry rules, routing, split, rollout, judge, price book.

Everything in this package is synchronous and pure. There is no event loop, socket, file, clock, randomness, environment
or log in it: time and random draws come in as arguments, decisions go out as values. The shells around it (sidecar,
operator, command line) own every side effect. `make check` enforces this.
"""
