"""A network whose activations are the identity: its maps and its tails."""
