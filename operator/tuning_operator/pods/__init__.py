"""What all pods share, and why one is stuck; pure."""
