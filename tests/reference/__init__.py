"""Slow, obvious twins of the core's functions: what each promises, one token at a time."""
