"""What prepare reports: report.json, report.html and samples of rows."""
