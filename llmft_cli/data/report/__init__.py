"""The report of prepare: report.json, report.html and sample rows."""
