"""Shards: how sequences lie in files, and how a file is proved whole. docs/FORMAT.md is the specification."""
