"""MLflow: tracking, the model registry, promotion, and the model that MLflow loads."""
