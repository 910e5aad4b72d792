"""The network without its activations."""
