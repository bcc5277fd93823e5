"""Serving on one machine: what `launch_llm.sh` decides and does. Standard library and httpx only."""
