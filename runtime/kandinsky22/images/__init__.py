"""Pictures: read, written with how they were made, masks and depth maps."""
