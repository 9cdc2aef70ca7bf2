"""The decoder's side: conditions, guidance, the loop, and MoVQ."""
