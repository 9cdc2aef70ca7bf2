"""The HTTP server of kandinsky22."""
