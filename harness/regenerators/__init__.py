"""What turns an image into a safer one: ReSafe's questions, features and search for a prompt (Sections 2, 3, A, D)."""
