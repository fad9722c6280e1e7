"""MedFormer and its published checkpoints."""

from hepar.networks.medformer.network import MedFormer, MedFormerConfig
from hepar.networks.medformer.published import load_published

__all__ = ["MedFormer", "MedFormerConfig", "load_published"]
