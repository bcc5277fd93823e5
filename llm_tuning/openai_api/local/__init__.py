"""The backend of one machine: objects are files in a folder, and a TuningJob is trained by processes, one at a time."""
