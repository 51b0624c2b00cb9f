"""The claims ledger: what each paper says, where it is true by construction, where it is false, and on real data."""
