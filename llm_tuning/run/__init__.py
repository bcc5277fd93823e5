"""One run, from configuration to registered adapter; nothing here knows how a mode trains."""
