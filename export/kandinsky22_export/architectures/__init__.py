"""What a model family has, and what must fit together."""
