"""`sluice`: local mode, mock upstream, offline validation, and the `kubectl sluice` verbs."""
