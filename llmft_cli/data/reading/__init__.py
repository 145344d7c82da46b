"""Streams of rows from files, directories, compressed files, the Hub and standard input."""
