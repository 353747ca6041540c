"""What may be known about calls from outside: records, metrics, traces, operational logs. Never on the path."""
