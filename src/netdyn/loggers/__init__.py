"""Destinations of the numbers, figures and texts."""
