"""The guest's image, from its recipe: shared by all hypervisors, which each pack it their way."""
