"""Data sets: read, checked, brought to one internal form, rendered and tokenised; never torch or transformers."""
