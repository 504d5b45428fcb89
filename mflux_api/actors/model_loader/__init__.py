"""The model loader: what is in one engine's memory, and the leases on it. Running is the generator's business."""
