"""What users write and read: the custom resources of group `sluice.dev`, version `v1alpha1`.

One module per kind, spec and status as typed values. The CRD manifests in `crds/` are generated from these types, so a
field, its bounds and its description are said once, here.
"""
