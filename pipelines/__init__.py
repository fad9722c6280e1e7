"""The two-stage pipeline: its graph, how it is compiled, and how it runs on one machine."""
