"""Shared by all of the package: errors, files, the reporter, library settings, CPU and network checks."""
