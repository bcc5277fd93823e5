"""What every room stands on: the base of all models, files, signals, the terminal, certificates."""
