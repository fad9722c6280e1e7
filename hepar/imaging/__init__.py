"""Volumes and what is done to them: geometry, preprocessing, masks."""
