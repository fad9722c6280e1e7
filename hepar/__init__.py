"""hepar: one universal liver-tumour segmentation model for CT and MR, out of labels that do not agree."""

__version__ = "0.1.0"
