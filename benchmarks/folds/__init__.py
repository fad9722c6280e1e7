"""Parts of `benchmarks/real_folds.py`: splitting, training, scoring, changed lights, and figures."""
