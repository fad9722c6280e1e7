"""MedFormer and its published checkpoints."""

from hepar.networks.medformer.config import LEVELS, MedFormerConfig
from hepar.networks.medformer.network import MedFormer
from hepar.networks.medformer.weight_mapping import load_published_weights

__all__ = ["LEVELS", "MedFormer", "MedFormerConfig", "load_published_weights"]
