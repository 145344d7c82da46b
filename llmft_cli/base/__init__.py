"""What every part of the package uses: errors, files, the reporter, the libraries' settings, the machine."""
