"""The proxy beside the application: thin input and output around `sluice_core`, in the order that `app.py` lists.

It never imports a Kubernetes client: all that it knows comes from mounted files and the sync channel.
"""
