"""Trained models: the folder that holds one, and how it segments a scan."""
