"""What every other package needs."""
