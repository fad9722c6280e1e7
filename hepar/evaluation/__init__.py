"""Evaluation: metrics of predicted masks, summaries with confidence intervals, and the report."""
