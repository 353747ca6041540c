"""What may be known about calls from outside: decision records, metrics, traces, operational logs. Never on the path."""
