"""Find the local fields of a network, and read them while it runs."""
