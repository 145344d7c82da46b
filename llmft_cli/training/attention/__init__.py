"""Attention that separates packed rows."""
