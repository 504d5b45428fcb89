"""What the demo model's images show, measured; checks of whole contact sheets beside the tests."""
