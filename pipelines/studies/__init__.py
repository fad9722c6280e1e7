"""Studies: arms that differ in their params, at one budget, over seeds and folds, and what they say about claims."""
