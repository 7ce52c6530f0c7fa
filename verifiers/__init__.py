"""Verifiers: prove that every point of a ball is classified rightly, or say why not."""
