"""What every part of the package uses: errors, files, the reporter, library settings, CPU and network checks."""
