"""From a source to a cohort: readers, checks, splits, near-duplicates."""
