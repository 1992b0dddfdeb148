"""Datasets that lie elsewhere: whole shards come into a bounded cache, proved, and are read from there."""
