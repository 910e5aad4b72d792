"""The samples that a network is measured on, and which of its outputs count as right."""
