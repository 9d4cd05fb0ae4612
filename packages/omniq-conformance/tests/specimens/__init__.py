"""Backends to try the suite on: mutants that it must reject, and honest lesser ones that it must accept."""
