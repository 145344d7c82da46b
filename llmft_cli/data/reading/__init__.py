"""Rows from files, directories, archives, the Hub and standard input, in a stream."""
