"""The example configurations of proxies, with real ones: a command of its own, see CONTRIBUTING.md."""
