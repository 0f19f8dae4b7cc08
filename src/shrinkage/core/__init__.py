"""What every method stands on: selection, schedules, thresholds, the engine, the ledger."""
