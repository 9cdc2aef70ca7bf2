"""How the pictures of checkpoints/shapes are scored: who paints them, the cases of each task, and contact sheets."""
