"""The bundle: its manifest, its files, and their checksums."""
