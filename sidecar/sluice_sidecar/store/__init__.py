"""Slices of accounts that several clusters share, taken from a Redis server. Never on the path of a call.

`redis_link` is the only module that speaks to the server, and the only one that imports its client.
"""
