"""ReSafe (paper sections 2, 3, A and D): what an image says, its safe feature, and a prompt that says that feature."""
