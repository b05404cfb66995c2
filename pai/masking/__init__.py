"""From scores to masks: selection with exact counts, schedules of rounds, reports."""
