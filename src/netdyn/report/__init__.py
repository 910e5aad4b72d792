"""What an evaluation found, in words and pictures."""
