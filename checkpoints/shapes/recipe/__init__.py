"""How checkpoints/shapes was trained: one file a part, in the order of train.py."""
