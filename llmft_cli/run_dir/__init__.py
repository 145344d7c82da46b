"""The run directory, through which commands share results, and its ledger."""
