"""What suits a cohort: statistics, proposed settings, calibrated gates, memory of a training step."""
