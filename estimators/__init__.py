"""What a deployment costs: memory, work, speed, serving, quality, money. Pure functions and their own data files."""
