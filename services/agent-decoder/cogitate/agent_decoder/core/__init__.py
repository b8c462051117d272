"""Pure parts of the engine: no clock, no thread, no socket."""
