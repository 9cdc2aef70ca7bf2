"""The contracts that existing clients speak, each over the one service."""
