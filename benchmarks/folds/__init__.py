"""Parts of `benchmarks/real_folds.py`: training, scoring, changed lights, and figures."""
