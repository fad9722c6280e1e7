"""The two-stage pipeline: its graph, and how it runs on one machine."""
