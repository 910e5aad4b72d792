"""The samples that a network is measured on, and what counts as a right answer."""
