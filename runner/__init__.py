"""A llama-style engine small enough to trust, with a meter. Imports `modeldb` only."""
