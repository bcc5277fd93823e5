"""The backend of one machine: objects are files in a folder; jobs are trained and models served by processes."""
