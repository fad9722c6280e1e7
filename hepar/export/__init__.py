"""Trained models for other programs: one ONNX file, or a bundle that MONAI's runner runs."""
