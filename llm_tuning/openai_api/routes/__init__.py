"""One module for each group of endpoints; `app` mounts each `router`."""
