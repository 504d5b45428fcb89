"""The operating system's own ways, which are the same for every part of the service: worker threads, syncing files."""
