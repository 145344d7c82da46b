"""Attention that keeps packed rows apart."""
