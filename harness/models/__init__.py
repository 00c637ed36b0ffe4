"""Everything that loads or calls a network: diffusion models, CLIP, vision-language models."""
