"""Finds the options that would make refused rows usable, by trying them on a sample of the rows."""
