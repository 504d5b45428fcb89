"""What the demo model's images show, measured."""
