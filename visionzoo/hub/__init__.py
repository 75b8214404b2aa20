"""A run as a repository of a model hub: its licence, its card, its folder, and the way there."""
