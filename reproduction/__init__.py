"""Corpora and reproductions of published experiments."""
