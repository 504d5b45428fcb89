"""What every part of the service does in the same way: waiting for threads, nurseries, long texts, syncing files."""
