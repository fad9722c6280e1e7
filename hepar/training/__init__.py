"""How a network learns from a mixed-label pool: losses, sampling, augmentation, the loop and its checkpoints."""
