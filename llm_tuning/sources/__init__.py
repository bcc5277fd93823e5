"""Models and data sets by name: from a hub, an object store or the web to a folder on this disk, pinned and whole."""
