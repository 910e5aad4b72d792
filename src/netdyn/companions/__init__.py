"""Quantities of related work, beside netdyn's own."""
