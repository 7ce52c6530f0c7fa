"""Reports: tables, plots and pages derived from the results table."""
