"""What the defenses that train share: the loop, losses, LoRA, attention maps, training images."""
