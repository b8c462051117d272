"""Pure parts of the aggregator: events in, effects out."""
