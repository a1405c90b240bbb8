"""What a file holds, and how it becomes a tensor: containers, frames, colour, size."""
