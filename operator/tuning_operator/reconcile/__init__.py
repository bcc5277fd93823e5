"""From what is observed to what is desired, without any side effect."""
