"""How a network learns from a partially labelled pool: sampling, augmentation, losses, the loop and its checkpoints."""
