"""What is measured: one module per subject. The module's docstring says how it is set, and why so."""
