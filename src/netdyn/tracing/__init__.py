"""Find the local fields of a network, and hand them over as they pass."""
