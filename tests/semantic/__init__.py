"""What the demo model's pictures show, measured."""
