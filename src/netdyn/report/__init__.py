"""The results of an evaluation, as numbers, text and figures."""
