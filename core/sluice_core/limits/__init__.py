"""Quotas: windows, admission, the waiting line, leases, budgets. Pure."""
