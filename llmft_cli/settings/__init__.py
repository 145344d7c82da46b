"""Settings: their definitions, how they are read and resolved, and the type to compute in."""
