"""What happened to every input file: rows, reasons, splits, keys, plans, the cohort and its audit."""
