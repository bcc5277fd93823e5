"""The files of a data set: where they lie, what they hold, and their rows as streams in bounded memory."""
