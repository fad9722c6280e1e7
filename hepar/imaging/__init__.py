"""Volumes and their geometry, preprocessing, and masks."""
